"""Questions with short answers about the documents of a corpus, and how they are written for a language model.

An artifact of kind "questions" holds `questions-train.jsonl` and `questions-test.jsonl`, one JSON object per line with
the fields of Question in their order. All questions of a document are in one of the two files.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactCorruptError, ConfigError

QUESTIONS_KIND = "questions"
QUESTION_SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """One question.

    id: unique and stable; document: id of the document it is about; document_split: that document's split, which says
    whether a language model was trained on it as plain text; kind: "default" or "return_type"; parameter: its name
    ("" for return types); answers: all accepted ones, the first is what a model is trained to say; evidence: the
    line of the document that holds the first answer, verbatim.
    """

    id: str
    document: str
    document_split: str
    kind: str
    parameter: str
    question: str
    answers: tuple[str, ...]
    evidence: str

    def line(self) -> bytes:
        """As one line of JSON, with its line end."""
        record = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n"


_TEXT_FIELDS = tuple(field.name for field in dataclasses.fields(Question) if field.name != "answers")


def parse_question(line: bytes, where: str) -> Question:
    """The question of one line. `where` names it in the ArtifactCorruptError raised for anything else."""
    try:
        record: dict[str, Any] = json.loads(line)
        answers = tuple(record["answers"])
        texts = {name: record[name] for name in _TEXT_FIELDS}
        if not answers or not all(isinstance(value, str) for value in (*answers, *texts.values())):
            raise ValueError("expected texts and at least one answer")
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactCorruptError(f"{where}: not a question ({error}); make the questions again") from None
    return Question(answers=answers, **texts)


def open_questions(folder: str | Path, split: str) -> list[Question]:
    """The train or test questions of a finished artifact. Raises ArtifactError, or ConfigError for the split."""
    if split not in QUESTION_SPLITS:
        raise ConfigError(f"split: questions have the splits {' and '.join(QUESTION_SPLITS)}, found {split!r}")
    open_manifest(folder, QUESTIONS_KIND)
    path = Path(folder) / f"{QUESTIONS_KIND}-{split}.jsonl"
    return read_questions(path)


def read_questions(path: Path) -> list[Question]:
    """All questions of one file."""
    with open(path, "rb") as file:
        return [parse_question(line, f"{path}:{number}") for number, line in enumerate(file, start=1)]


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """Write a file that `read_questions` reads."""
    with open(path, "wb") as file:
        file.writelines(question.line() for question in questions)


def format_prompt(question: str) -> str:
    """What the model reads (template B of Wang et al. 2023, section 7.1). `format_answer` writes what follows."""
    return f"question: {question}\nanswer:"


def format_answer(answer: str) -> str:
    """What the model is to write after the prompt; the end-of-text token follows."""
    return f" {answer}"


def parse_answer(text: str) -> str:
    """The answer in what a model wrote: its first line."""
    return text.strip().split("\n")[0].strip()
