"""The places that questions come from, each with its splits, its identity and its questions."""

from __future__ import annotations

import glob
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from data_prep.qa_source.local_files import iter_records
from data_prep.readers.files import find_files
from data_prep.readers.hashing import CorpusFile, FileGuard, FileHasher, corpus_identity
from data_prep.readers.hub_data import is_local, one_line, open_data_set, resolve_commit
from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactError, ArtifactMissingError, ConfigError, RetroError
from retro.config.loader import to_dict
from retro.config.qa_source import Fields, HubData, QaSourceConfig, merge_fields
from retro.data.qa.mapping import QuestionReader
from retro.data.qa.question_file import SourceQuestion
from retro.data.qa.record import QaQuestion
from retro.data.qa.task import TaskDefinition
from retro.data.question_dataset import QUESTION_SEQUENCES_KIND
from retro.data.questions import QUESTION_SPLITS, QUESTIONS_KIND, Question, open_questions, read_questions

_NO_MARKS = 1 << 62


class QuestionSource(ABC):
    """Splits, and the questions of each. Instances are pickled to worker processes."""

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Those that the source has."""

    @abstractmethod
    def identity(self, splits: tuple[str, ...]) -> dict[str, Any]:
        """What decides the questions of these splits, JSON-able: content, not the place where it lies."""

    @abstractmethod
    def iter_questions(self, split: str) -> Iterator[SourceQuestion]:
        """The questions of a split, in the source's order. Raises ArtifactError, one line, for what is wrong."""


class RecordSource(QuestionSource):
    """A source of records, which a task's fields turn into questions."""

    def __init__(self, task: TaskDefinition, fields: Fields, passages: int | None) -> None:
        """passages: most that are kept of each question, None = all."""
        self.fields, self._answers_are, self._passages = fields, task.answers_are, passages

    @abstractmethod
    def iter_source_records(self, split: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """(where, name of the file or "", record) in order."""

    @abstractmethod
    def name_of(self, split: str) -> str:
        """The split's place, for errors."""

    def iter_questions(self, split: str) -> Iterator[SourceQuestion]:
        reader = QuestionReader(self.fields, self._answers_are, split, self._passages)
        for where, file, record in self.iter_source_records(split):
            yield reader.read(record, where, file)
        reader.finish(self.name_of(split))


class FilesSource(RecordSource):
    """Local files by split."""

    def __init__(
        self,
        files: Mapping[str, tuple[str, ...]],
        task: TaskDefinition,
        fields: Fields,
        passages: int | None = None,
        hasher: FileHasher | None = None,
    ) -> None:
        """files: split -> paths and patterns. Raises ArtifactMissingError for one that is not there."""
        super().__init__(task, fields, passages)
        self._paths = {split: [path for text in texts for path in _expand(text)] for split, texts in files.items()}
        hasher = hasher or FileHasher()
        self._files: dict[str, list[CorpusFile]] = {
            split: hasher.describe([(path.name, path) for path in paths], _NO_MARKS)
            for split, paths in self._paths.items()
        }
        self._guard = FileGuard()

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._paths)

    def identity(self, splits: tuple[str, ...]) -> dict[str, Any]:
        files = {split: corpus_identity(self._files[split]) for split in sorted(splits)}
        return {"files": files, "fields": to_dict(self.fields)}

    def name_of(self, split: str) -> str:
        return ", ".join(map(str, self._paths[split]))

    def iter_source_records(self, split: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        for path, file in zip(self._paths[split], self._files[split], strict=True):
            self._guard.check(path, file.state)
            for where, record in iter_records(path, self.fields.question):
                yield where, path.name, record
            self._guard.check(path, file.state)


class HubSource(RecordSource):
    """A data set of the hub, or a local folder that the same library opens."""

    def __init__(self, hub: HubData, task: TaskDefinition, fields: Fields, passages: int | None = None) -> None:
        super().__init__(task, fields, passages)
        self.hub = hub

    @cached_property
    def revision(self) -> str | None:
        """Commit; None for a local folder. Raises ArtifactMissingError where the hub cannot be asked."""
        return None if is_local(self.hub.path) else resolve_commit(self.hub.path, self.hub.revision, "hub.path")

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.hub.splits)

    def identity(self, splits: tuple[str, ...]) -> dict[str, Any]:
        hub: dict[str, Any] = {"path": self.hub.path, "revision": self.revision}
        if self.revision is None:
            hub = corpus_identity(FileHasher().describe(find_files(self.hub.path, ("**/*",)), _NO_MARKS))
        chosen = {split: self.hub.splits[split] for split in sorted(splits)}
        return {"hub": {**hub, "name": self.hub.name, "splits": chosen}, "fields": to_dict(self.fields)}

    def name_of(self, split: str) -> str:
        return f"{self.hub.path} ({self.hub.splits[split]})"

    def iter_source_records(self, split: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        hub = self.hub
        data = open_data_set(hub.path, hub.name, hub.splits[split], self.revision, "hub.path", streaming=False)
        rows, number = iter(data), 0
        while True:
            where = f"{self.name_of(split)}: row {number}"
            try:
                record = next(rows, None)
            except RetroError:
                raise
            except Exception as error:  # every format behind `datasets` has its own errors
                raise ArtifactError(f"{where}: cannot be read: {one_line(error)}") from None
            if record is None:
                return
            yield where, "", record
            number += 1


class ReleaseSource(QuestionSource):
    """The questions about its own documents that a release has (`retro prep` with a section questions)."""

    def __init__(self, folder: Path) -> None:
        """folder: an artifact of kind questions or question_sequences."""
        self.folder = Path(folder)
        manifest = open_manifest(self.folder)
        if manifest.kind not in (QUESTIONS_KIND, QUESTION_SEQUENCES_KIND):
            raise ArtifactError(f"{folder}: expected questions, found {manifest.kind}")
        self._laid_out = manifest.kind == QUESTION_SEQUENCES_KIND
        self._shards = [str(shard["name"]) for shard in manifest.shards]

    @property
    def splits(self) -> tuple[str, ...]:
        return QUESTION_SPLITS

    def identity(self, splits: tuple[str, ...]) -> dict[str, Any]:
        return {"release": sorted(splits)}  # the content is an input of the stage

    def iter_questions(self, split: str) -> Iterator[SourceQuestion]:
        questions = self._questions(split)
        if not questions:
            raise ArtifactError(f"{self.folder}: split {split}: expected questions, found none")
        yield from (SourceQuestion(documented_question(question)) for question in questions)

    def _questions(self, split: str) -> list[Question]:
        if not self._laid_out:
            return open_questions(self.folder, split)
        shards = [name for name in self._shards if name.startswith(f"{split}-")]
        return [question for name in shards for question in read_questions(self.folder / f"questions-{name}.jsonl")]


def documented_question(question: Question) -> QaQuestion:
    """A question about a document of the release: its kind is the group, kind and parameter are the relation."""
    return QaQuestion(
        id=question.id,
        question=question.question,
        answers=question.answers,
        evidence=(question.document,),
        group=question.kind,
        relation=f"{question.kind} {question.parameter}".strip(),
        subject=question.document,
    )


def open_source(
    task: TaskDefinition, config: QaSourceConfig, release_questions: Path | None = None, cache: Path | None = None
) -> QuestionSource:
    """The source that the configuration names, or the task's own.

    release_questions: artifact of the release's questions, where config.release is set; cache: keeps hashes of files
    between runs. Raises ConfigError where there is none, and ArtifactError for what is not there.
    """
    if config.release is not None:
        if release_questions is None:
            raise ConfigError("release: questions of a release need the release; name it")
        return ReleaseSource(release_questions)
    fields = merge_fields(task.fields, config.fields)
    files = config.files or (task.files if config.hub is None else {})
    if files:
        return FilesSource(files, task, fields, config.passages, FileHasher(cache))
    hub = config.hub or task.hub
    if hub is None:
        raise ConfigError(
            f"task {task.name} names no place of its questions; give source.files, such as "
            "source.files.test=[questions.jsonl]"
        )
    return HubSource(hub, task, fields, config.passages)


def _expand(text: str) -> list[Path]:
    """The files of a path or pattern, sorted."""
    if Path(text).is_file():
        return [Path(text)]
    found = sorted(Path(name) for name in glob.glob(text, recursive=True) if Path(name).is_file())
    if not found:
        raise ArtifactMissingError(f"{text}: file of questions not found; correct files")
    return found
