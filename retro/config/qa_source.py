"""Configuration of where questions come from: files, the hub, or a release; and which field of a record is what."""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass
from typing import Literal

from retro.config.checks import require, require_at_least
from retro.config.errors import ConfigError

_SPLIT = re.compile(r"[a-z][a-z0-9_]*")


def check_splits(where: str, splits: object) -> None:
    """Raise ConfigError unless each name is one of a split: small letters, digits and _."""
    for name in splits:  # type: ignore[attr-defined]
        require(_SPLIT.fullmatch(name) is not None, f"{where}: expected small letters, digits and _, found {name!r}")


@dataclass(frozen=True)
class HubData:
    """A data set on the Hugging Face hub, or a folder that the `datasets` library opens.

    path: owner/name; name: its configuration; revision: branch, tag or commit, None = the newest, whose commit is
    recorded; splits: split of the task -> split of the data set.
    """

    path: str
    name: str | None = None
    revision: str | None = None
    splits: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.path != "", "path: expected the name of a data set, such as akariasai/PopQA")
        require(len(self.splits) > 0, "splits: expected at least one, such as {test: validation}")


@dataclass(frozen=True)
class Fields:
    """Where a record of the source holds what. Dots lead into nested records (answers.text).

    question; answers: a text, a list of texts, or {"value", "aliases"} (value first); id: None = made of the question;
    evidence: id or ids of documents that hold the answer; group, relation, subject, popularity, object_popularity: see
    QaQuestion; target: the answer that a model is trained to say, where it is not the first (FiD's TriviaQA); passages:
    texts, or {"title", "text"} and, where known, "score" and "id" (DPR and FiD files: ctxs), in a list or one alone.
    @file is the name of a local file up to its first dot. A name that ends in ? may be missing from all records; one
    without it, all but question and answers, from some of them.
    answers_text: what a text in the place of the answers is: one answer, a JSON list (PopQA), or a Python list (DPR's
    tables); answers_separator: cuts one text into answers.
    """

    question: str = "question"
    answers: str = "answers"
    id: str | None = None
    evidence: str | None = None
    group: str | None = None
    relation: str | None = None
    subject: str | None = None
    popularity: str | None = None
    object_popularity: str | None = None
    target: str | None = None
    passages: str | None = None
    answers_text: Literal["one", "json", "python"] = "one"
    answers_separator: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            require(getattr(self, field.name) != "", f"{field.name}: expected the name of a field or null, found ''")
        for name in ("question", "answers"):
            require(not getattr(self, name).endswith("?"), f"{name}: every record has one; remove the question mark")
        # Also for changes that no YAML file was checked for.
        require(
            self.answers_text in ("one", "json", "python"),
            f"answers_text: expected one, json or python, found {self.answers_text!r}",
        )
        require(
            self.answers_separator is None or self.answers_text == "one",
            f"answers_separator: cuts texts, but answers_text is {self.answers_text!r}; leave one of them out",
        )


@dataclass(frozen=True)
class SplitOff:
    """A split made out of another: about `share` of the questions of split `of`, which lack there from then on.

    A seeded hash decides, of the question's text, of its first evidence document, of its subject or of its group: what
    is the same in that is never on both sides. Questions without the one are told apart by their text.
    """

    of: str
    share: float = 0.1
    by: Literal["question", "evidence", "subject", "group"] = "question"
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 < self.share < 1, f"share: expected above 0 and below 1, found {self.share}")
        require_at_least(self, 0, "seed")


@dataclass(frozen=True)
class QaSourceConfig:
    """Where the questions of a task come from: its own files or its hub data set, unless one of these is set.

    files: split -> paths of .jsonl, .json, .csv, .tsv (each also .gz, .xz, .zst) or .parquet files, * allowed; hub: a
    data set; release: name of questions in the release (docs). fields: replaces some of the task's fields (name
    -> field of the source, null = it has none), not for a release.
    splits: the splits that are wanted, () = all. passages: most passages kept of those that come with a question.
    max_questions: split -> the first so many of its seeded order. seed: of that order.
    """

    files: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    hub: HubData | None = None
    release: str | None = None
    fields: dict[str, str | None] = dataclasses.field(default_factory=dict)
    splits: tuple[str, ...] = ()
    passages: int = 20
    max_questions: dict[str, int] = dataclasses.field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        places = [name for name in ("files", "hub", "release") if getattr(self, name)]
        require(len(places) <= 1, f"expected one place of the questions, found {' and '.join(places)}; remove one")
        require(self.release != "", "release: expected the name of questions in the release, such as docs")
        require(
            self.release is None or not self.fields, "fields: the questions of a release have their own; remove fields"
        )
        check_splits("files", self.files)
        for split, paths in self.files.items():
            require(len(paths) > 0 and all(paths), f"files.{split}: expected paths, found {list(paths)}")
        require(len(set(self.splits)) == len(self.splits), f"splits: expected each once, found {list(self.splits)}")
        require_at_least(self, 1, "passages")
        require_at_least(self, 0, "seed")
        for split, most in self.max_questions.items():
            require(most >= 1, f"max_questions.{split}: expected 1 or more, found {most}")
        merge_fields(Fields(), self.fields)


def merge_fields(fields: Fields, changes: dict[str, str | None]) -> Fields:
    """`fields` with what `changes` says. Raises ConfigError for a name that is none, or a value it cannot have."""
    known = {field.name: field for field in dataclasses.fields(Fields)}
    for name, value in changes.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"fields: unknown field {name!r}; {hint}")
        require(
            value is not None or known[name].default is None,
            f"fields.{name}: expected a field of the source, found null",
        )
    return dataclasses.replace(fields, **changes)  # type: ignore[arg-type]
