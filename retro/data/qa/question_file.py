"""Questions as they are kept: one line of JSON each, with the passages that came with them, if any.

Artifact kind "qa_questions" (no inputs, or the questions of a release): `questions-<split>.jsonl` in a seeded order,
the task in `task.json`. docs/formats.md has the fields.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactCorruptError, ConfigError
from retro.data.qa.record import Passage, QaQuestion
from retro.data.qa.record_json import parse_passage, parse_question, passage_record, question_record
from retro.data.qa.task import TaskDefinition, task_from_dict

QA_QUESTIONS_KIND = "qa_questions"
TASK_FILE = "task.json"


@dataclasses.dataclass(frozen=True, slots=True)
class SourceQuestion:
    """A question as its source has it.

    passages: those that the source brings along (files of DPR and FiD), in its order, else ().
    """

    question: QaQuestion
    passages: tuple[Passage, ...] = ()


def question_line(item: SourceQuestion) -> bytes:
    """As one line of JSON, with its line end. `passages` is left out where there are none; NaN scores are null."""
    record = question_record(item.question)
    if item.passages:
        record["passages"] = [passage_record(passage) for passage in item.passages]
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8") + b"\n"


def parse_question_line(line: bytes, where: str) -> SourceQuestion:
    """The question of one line. `where` names it in the ArtifactCorruptError raised for anything else."""
    try:
        record: dict[str, Any] = json.loads(line)
        return SourceQuestion(parse_question(record), tuple(parse_passage(p) for p in record.get("passages", ())))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ArtifactCorruptError(
            f"{where}: not a question ({type(error).__name__}: {error}); make the questions again"
        ) from None


def write_source_questions(path: Path, questions: Iterable[SourceQuestion]) -> int:
    """Write a file that `iter_source_questions` reads; returns the number of questions."""
    count = 0
    with open(path, "wb") as file:
        for item in questions:
            file.write(question_line(item))
            count += 1
    return count


def iter_source_questions(path: Path) -> Iterator[SourceQuestion]:
    """The questions of one file, in order. Raises ArtifactCorruptError."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            yield parse_question_line(line, f"{path}:{number}")


class SourceQuestions:
    """A finished artifact of questions. splits: their names, in order; fingerprint: of task and content."""

    def __init__(self, folder: str | Path) -> None:
        """Raises ArtifactError subclasses."""
        self.folder = Path(folder)
        manifest = open_manifest(self.folder, QA_QUESTIONS_KIND)
        self.fingerprint = manifest.fingerprint
        try:
            self.figures: dict[str, dict[str, Any]] = {
                entry["split"]: dict(entry) for entry in manifest.stats["splits"]
            }
        except (KeyError, TypeError, ValueError):
            raise ArtifactCorruptError(
                f"{self.folder}: the manifest lacks the splits of the questions; make the questions again"
            ) from None
        self.splits: tuple[str, ...] = tuple(self.figures)

    @cached_property
    def task(self) -> TaskDefinition:
        """The task as it was when the questions were read. Raises ArtifactCorruptError."""
        path = self.folder / TASK_FILE
        try:
            return task_from_dict(json.loads(path.read_bytes()), str(path))
        except (OSError, ValueError) as error:
            raise ArtifactCorruptError(f"{path}: cannot be read ({error}); make the questions again") from None

    def count(self, split: str) -> int:
        """Questions of a split. Raises ConfigError for a split that there is not."""
        return int(self._figures_of(split)["questions"])

    def iter(self, split: str) -> Iterator[SourceQuestion]:
        """The questions of a split in their seeded order. Raises ConfigError for a split that there is not."""
        self._figures_of(split)
        yield from iter_source_questions(self.folder / f"questions-{split}.jsonl")

    def read(self, split: str) -> list[SourceQuestion]:
        """As `iter`, all at once."""
        return list(self.iter(split))

    def _figures_of(self, split: str) -> dict[str, Any]:
        if split not in self.figures:
            raise ConfigError(
                f"{self.folder}: expected a split of these questions ({', '.join(self.splits)}), found {split!r}"
            )
        return self.figures[split]


def open_source_questions(folder: str | Path) -> SourceQuestions:
    """Open the artifact of stage qa_questions. Raises ArtifactError subclasses."""
    return SourceQuestions(folder)
