"""Stage qa_questions: the questions of a task, out of files, the hub or a release, checked and in a seeded order."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.qa_source.sources import ReleaseSource, open_source
from data_prep.stage import Shard, ShardResult, Stage
from retro.artifacts.release import open_release
from retro.config.errors import ArtifactError, ArtifactMissingError, ConfigError
from retro.config.qa_source import QaSourceConfig, SplitOff
from retro.data.qa.question_file import (
    QA_QUESTIONS_KIND,
    TASK_FILE,
    SourceQuestion,
    parse_question_line,
    write_source_questions,
)
from retro.data.qa.record import wording
from retro.data.qa.task import TaskDefinition, task_to_dict

_ORDER = ("train", "dev", "test")
_COMMON = 50


class QaQuestionsStage(Stage):
    """Inputs: release_questions where they are a release's, else none (the content of the source is in the config).

    Per split of the source: `read-<split>-00000.jsonl`, its questions. At the end: `questions-<split>.jsonl` of every
    split that is wanted, after `split_off`, in the order of a seeded hash of the ids, and `task.json`.
    """

    name = "qa_questions"
    version = 1
    kind = QA_QUESTIONS_KIND

    def __init__(
        self,
        task: TaskDefinition,
        source: QaSourceConfig,
        release_questions: Path | None = None,
        cache: Path | None = None,
    ) -> None:
        """release_questions: folder of the release's questions, where source.release is set (`release_questions`);
        cache: a file that keeps hashes of question files between runs (speed only). Raises ConfigError for splits that
        there are not, and what `open_source` raises."""
        self.task, self.options = task, source
        self.source = open_source(task, source, release_questions, cache)
        self._splits = plan_splits(self.source.splits, task.split_off, source.splits)
        for split in source.max_questions:
            if split not in self._splits.wanted:
                prepared = ", ".join(self._splits.wanted)
                raise ConfigError(f"max_questions: expected splits that are prepared ({prepared}), found {split!r}")
        config = {
            "task": task_to_dict(task),
            "source": self.source.identity(self._splits.read),
            "splits": sorted(self._splits.wanted),
            "passages": source.passages,
            "max_questions": dict(source.max_questions),
            "seed": source.seed,
        }
        inputs = {"release_questions": self.source.folder} if isinstance(self.source, ReleaseSource) else {}
        super().__init__(config, inputs)

    def plan(self) -> list[Shard]:
        """One shard per split that is read."""
        return [Shard(f"{split}-00000", {"split": split}) for split in self._splits.read]

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Read the questions of one split."""
        questions = self.source.iter_questions(shard.spec["split"])
        return ShardResult(write_source_questions(out / f"read-{shard.name}.jsonl", questions))

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Make splits of others, order, limit, count."""
        (out / TASK_FILE).write_text(
            json.dumps(task_to_dict(self.task), indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        lines: dict[str, list[_Line]] = {}
        for split in self._splits.read:
            path = folder / f"read-{split}-00000.jsonl"
            for name, line in self._assign(split, _scan(path, self.options.seed)):
                lines.setdefault(name, []).append(line)
        _check_ids(lines)
        texts = {split: {line.wording for line in found} for split, found in lines.items()}
        stats = []
        for split in self._splits.wanted:
            found = sorted(lines.get(split, []), key=lambda line: (line.rank, line.id))
            if not found:
                raise ArtifactError(
                    f"split {split}: no question is left for it; change split_off, give it as files, or leave it "
                    f"out with source.splits=[{', '.join(name for name in self._splits.wanted if name != split)}]"
                )
            kept = found[: self.options.max_questions.get(split)]
            others = set().union(*(words for other, words in texts.items() if other != split))
            figures = _Figures(others)
            with open(out / f"questions-{split}.jsonl", "wb") as file:
                file.writelines(figures.count(line) for line in _read_lines(kept))
            made = self._splits.made.get(split)
            stats.append({"split": split, "made_of": made.of if made else None, "of": len(found), **figures.record()})
        return {"splits": stats}

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """For people."""
        parts = [f"{entry['questions']:,} {entry['split']}" for entry in stats["splits"]]
        return f"questions of {self.task.name}: {', '.join(parts)}"

    def _assign(self, split: str, lines: Iterable[_Line]) -> Iterator[tuple[str, _Line]]:
        made = {name: rule for name, rule in self._splits.made.items() if rule.of == split}
        for line in lines:
            yield next((name for name, rule in made.items() if line.goes_to(name, rule)), split), line


@dataclass(frozen=True)
class SplitPlan:
    """wanted: splits to write; read: splits of the source that this takes; made: those made of another, all of them,
    so that what is left of a split does not depend on what is wanted."""

    wanted: tuple[str, ...]
    read: tuple[str, ...]
    made: dict[str, SplitOff]


def plan_splits(source: Iterable[str], split_off: dict[str, SplitOff], wanted: tuple[str, ...] = ()) -> SplitPlan:
    """Which splits are read and made. Splits are in the order train, dev, test, then by name.

    Raises ConfigError for a split that is wanted and neither in the source nor to be made.
    """
    there = set(source)
    made = {name: rule for name, rule in sorted(split_off.items()) if name not in there and rule.of in there}
    available = _in_order({*there, *made})
    for split in wanted:
        if split not in available:
            raise ConfigError(f"splits: expected some of {', '.join(available)}, found {split!r}")
    chosen = _in_order(wanted or available)
    return SplitPlan(chosen, _in_order({made[name].of if name in made else name for name in chosen}), made)


def release_questions(release: Path, name: str) -> Path:
    """Folder of the questions of that name in a release. Raises ArtifactMissingError."""
    questions = open_release(release).questions
    if name not in questions:
        there = f"it has {', '.join(sorted(questions))}" if questions else "it has none"
        raise ArtifactMissingError(f"{release}: no questions {name!r} in the release; {there}")
    return questions[name]


class _Line:
    """Where the line of a question is, and what decides its split and place. keys: hashes by `SplitOff.by`."""

    __slots__ = ("id", "keys", "offset", "path", "rank")

    def __init__(self, path: Path, offset: int, item: SourceQuestion, seed: int) -> None:
        question = item.question
        self.path, self.offset, self.id = path, offset, question.id
        words = _hash("wording", wording(question.question))
        told_by = {"evidence": "".join(question.evidence[:1]), "subject": question.subject, "group": question.group}
        self.keys = {by: _hash(by, text) if text else words for by, text in told_by.items()}
        self.keys["question"] = words
        self.rank = _hash(f"order {seed}", question.id)

    def goes_to(self, split: str, rule: SplitOff) -> bool:
        return _hash(f"split {rule.seed}", f"{split} {self.keys[rule.by]}") < rule.share * 2**64

    @property
    def wording(self) -> int:
        return self.keys["question"]


class _Figures:
    """Figures of a split for the manifest."""

    def __init__(self, elsewhere: set[int]) -> None:
        """elsewhere: wordings of the other splits."""
        self._elsewhere = elsewhere
        self._counts: Counter[str] = Counter()
        self._groups: Counter[str] = Counter()
        self._relations: Counter[str] = Counter()

    def count(self, line: tuple[bytes, _Line]) -> bytes:
        item = parse_question_line(line[0], str(line[1].path))
        question = item.question
        self._counts["questions"] += 1
        self._counts["answers"] += len(question.answers)
        self._counts["with_evidence"] += bool(question.evidence)
        self._counts["with_passages"] += bool(item.passages)
        self._counts["with_popularity"] += question.popularity is not None
        self._counts["asked_in_another_split"] += line[1].wording in self._elsewhere
        if question.group:
            self._groups[question.group] += 1
        if question.relation:
            self._relations[question.relation] += 1
        return line[0]

    def record(self) -> dict[str, Any]:
        return {
            **dict(self._counts),
            "groups": _common(self._groups),
            "relations": _common(self._relations),
        }


def _scan(path: Path, seed: int) -> Iterator[_Line]:
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            yield _Line(path, offset, parse_question_line(line, f"{path}:{number}"), seed)
            offset += len(line)


def _read_lines(lines: Iterable[_Line]) -> Iterator[tuple[bytes, _Line]]:
    files: dict[Path, Any] = {}
    try:
        for line in lines:
            if line.path not in files:
                files[line.path] = open(line.path, "rb")  # noqa: SIM115 - closed below
            files[line.path].seek(line.offset)
            yield files[line.path].readline(), line
    finally:
        for file in files.values():
            file.close()


def _check_ids(lines: dict[str, list[_Line]]) -> None:
    """Raise ArtifactError for an id in two splits."""
    seen: dict[str, str] = {}
    for split, found in lines.items():
        for line in found:
            if line.id in seen:
                raise ArtifactError(
                    f"id {line.id!r}: expected in one split, found in {seen[line.id]} and {split}; correct the files, "
                    "or set fields.id to null, and ids are made of the questions"
                )
            seen[line.id] = split


def _common(counts: Counter[str]) -> dict[str, Any]:
    """Number of names, and the commonest with their questions: a source may have thousands."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {"names": len(counts), "common": ordered[:_COMMON]}


def _in_order(splits: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(splits), key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)))


def _hash(what: str, text: str) -> int:
    """Uniform in 0 .. 2^64 - 1."""
    digest = hashlib.blake2b(f"{what}\0{text}".encode(), digest_size=8, person=b"retro-qa-source").digest()
    return int.from_bytes(digest, "little")
