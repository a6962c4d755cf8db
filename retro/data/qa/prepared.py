"""Prepared questions: each with its evidence written out, so that training and evaluation need no index.

Artifact kind "qa_passages" (input: qa_questions, and the database and its indexes where passages were retrieved): per
shard `prepared-<split>-00000.jsonl`, one PreparedQuestion per line, in the order of the split's questions. The task and
the figures of the retrieval are in the manifest. `questions.json` names such an artifact by path and fingerprint.
docs/formats.md has the fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retro.artifacts.manifest import Manifest, open_manifest
from retro.config.errors import ArtifactCorruptError, ArtifactMissingError, ConfigError
from retro.data.qa.pointer import POINTER, read_pointer
from retro.data.qa.record import PreparedQuestion
from retro.data.qa.record_json import parse_passage, parse_question, passage_record, question_record

if TYPE_CHECKING:
    from retro.data.qa.task import TaskDefinition

QA_PASSAGES_KIND = "qa_passages"


def prepared_line(prepared: PreparedQuestion) -> bytes:
    """As one line of JSON, with its line end. A score that is unknown (NaN) is null."""
    record = {
        **question_record(prepared.question),
        "seen": prepared.seen,
        "passages": [passage_record(passage) for passage in prepared.passages],
        "oracle": [passage_record(passage) for passage in prepared.oracle],
    }
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8") + b"\n"


def parse_prepared(line: bytes, where: str) -> PreparedQuestion:
    """The question of one line. `where` names it in the ArtifactCorruptError raised for anything else."""
    try:
        record: dict[str, Any] = json.loads(line)
        seen = record["seen"]
        if seen is not None and not isinstance(seen, bool):
            raise ValueError(f"expected seen to be true, false or null, found {seen!r}")
        return PreparedQuestion(
            parse_question(record),
            passages=tuple(map(parse_passage, record["passages"])),
            oracle=tuple(map(parse_passage, record["oracle"])),
            seen=seen,
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ArtifactCorruptError(
            f"{where}: not a prepared question ({type(error).__name__}: {error}); prepare the questions again"
        ) from None


def write_prepared(path: Path, questions: Iterable[PreparedQuestion]) -> None:
    """Write a file that `read_prepared` reads."""
    with open(path, "wb") as file:
        file.writelines(prepared_line(question) for question in questions)


def read_prepared(path: Path) -> Iterator[PreparedQuestion]:
    """The questions of one file, in order. Raises ArtifactCorruptError."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            yield parse_prepared(line, f"{path}:{number}")


class PreparedQuestions:
    """A finished artifact of prepared questions.

    folder: of the artifact; splits: names, in the order of the configuration; fingerprint: of task, questions,
    database and retrieval; release: fingerprint of the release whose passages these are, None where they came with the
    questions; retrieval: how they were found (`method` and its options).
    """

    def __init__(self, folder: str | Path) -> None:
        """Raises ArtifactError subclasses."""
        self.folder = Path(folder)
        manifest = open_manifest(self.folder, QA_PASSAGES_KIND)
        self.fingerprint = manifest.fingerprint
        try:
            splits = manifest.stats["splits"]
            self._counts = {str(entry["split"]): int(entry["questions"]) for entry in splits}
            self._recalls = {str(entry["split"]): dict(entry["recall"]) for entry in splits}
            self.release: str | None = manifest.stats["release"]
            self.retrieval: dict[str, Any] = dict(manifest.stats["retrieval"])
            self._task: dict[str, Any] = dict(manifest.stats["task"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactCorruptError(
                f"{self.folder}: the manifest lacks figures of prepared questions ({type(error).__name__}: {error}); "
                "prepare the questions again"
            ) from None
        self.splits: tuple[str, ...] = tuple(self._counts)
        self._files = _files_by_split(manifest)

    @cached_property
    def task(self) -> TaskDefinition:
        """The task as it was when the questions were prepared."""
        from retro.data.qa.task import task_from_dict

        return task_from_dict(self._task, str(self.folder))

    def count(self, split: str) -> int:
        """Questions of a split. Raises ConfigError for a split that there is not."""
        self._check(split)
        return self._counts[split]

    def recall(self, split: str) -> dict[str, Any]:
        """How often retrieval brought what it should, as `retro.data.qa.recall.recall_figures` has it, over the whole
        split. Raises ConfigError for a split that there is not."""
        self._check(split)
        return dict(self._recalls[split])

    def read(self, split: str) -> list[PreparedQuestion]:
        """All questions of a split, in the order that the task's seed gave them.

        Raises ConfigError for a split that there is not, ArtifactCorruptError for lines that cannot be read.
        """
        return list(self.iter(split))

    def iter(self, split: str) -> Iterator[PreparedQuestion]:
        """As `read`, one question after the other."""
        self._check(split)
        for name in self._files.get(split, []):
            yield from read_prepared(self.folder / name)

    def _check(self, split: str) -> None:
        if split not in self._counts:
            raise ConfigError(
                f"{self.folder}: expected a split of these questions ({', '.join(self.splits)}), found {split!r}"
            )


def open_prepared(path: str | Path) -> PreparedQuestions:
    """Open what `retro qa prepare` made: its folder, the questions.json in it, or the artifact's own folder.

    Raises ArtifactMissingError, and ArtifactMismatchError where questions.json names another artifact than is there.
    """
    path = Path(path)
    if path.is_file():
        return PreparedQuestions(read_pointer(path))
    if (path / POINTER).is_file():
        return PreparedQuestions(read_pointer(path / POINTER))
    if not path.is_dir():
        raise ArtifactMissingError(
            f"{path}: prepared questions not found; make them with `retro qa prepare`, or correct the path"
        )
    return PreparedQuestions(path)


def _files_by_split(manifest: Manifest) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for shard in manifest.shards:
        split, _, _ = str(shard["name"]).rpartition("-")
        files.setdefault(split, []).extend(str(entry["name"]) for entry in shard["files"])
    return files
