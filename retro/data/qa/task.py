"""What a question answering task is: its fields, its prompts, its metrics. Definitions are versioned YAML files.

Those of `retro/data/qa/tasks/` are known by name, a user's file by its path; both mean the same.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from retro.artifacts.fingerprint import fingerprint
from retro.config.checks import require, require_at_least
from retro.config.errors import ConfigError
from retro.config.loader import from_dict, load_config, to_dict
from retro.data.qa.prompt import Prompts

Metric = Literal["exact_match", "f1", "substring", "substring_strict", "regex"]

_TASKS = Path(__file__).parent / "tasks"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
# For people, or about where a machine keeps the files: no result depends on them.
_NO_RESULT = ("title", "source", "licence", "citation", "page", "files")


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
    QaQuestion; passages: list of {"title", "text"} and, where known, "score" and "id" (DPR and FiD files: ctxs).
    @file is the name of a local file up to its first dot.
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
    passages: str | None = None
    answers_text: Literal["one", "json", "python"] = "one"
    answers_separator: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            require(getattr(self, field.name) != "", f"{field.name}: expected the name of a field or null, found ''")
        require(
            self.answers_separator is None or self.answers_text == "one",
            f"answers_separator: cuts texts, but answers_text is {self.answers_text!r}; leave one of them out",
        )


@dataclass(frozen=True)
class SplitOff:
    """A split made out of another: about `share` of the questions of split `of`, which lack there from then on.

    A seeded hash of the question's text decides, so that one question is never on both sides.
    """

    of: str
    share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 < self.share < 1, f"share: expected above 0 and below 1, found {self.share}")
        require_at_least(self, 0, "seed")


@dataclass(frozen=True)
class TaskDefinition:
    """One task.

    name: letters, digits and _; version: raised when results of the same answers change; title, source, licence,
    citation, page: for people, the page says what the splits are and where the task deviates from its original.
    hub, files (split -> files beside the definition; patterns allowed): where the questions are, unless a preparation
    names another place; fields: of their records; split_off: splits to make where the source lacks them.
    answers_are: texts, or regular expressions; metrics, primary: what answers are judged by, and the one of them that
    is reported first; until: texts that end an answer; max_new_tokens: most tokens of an answer (None = only the
    layout's limit); prompts; instruction: begins the prompt, before demonstrations.
    """

    name: str
    version: int = 1
    title: str = ""
    source: str = ""
    licence: str = ""
    citation: str = ""
    page: str = ""
    hub: HubData | None = None
    files: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    fields: Fields = dataclasses.field(default_factory=Fields)
    split_off: dict[str, SplitOff] = dataclasses.field(default_factory=dict)
    answers_are: Literal["text", "regex"] = "text"
    metrics: tuple[Metric, ...] = ("exact_match", "f1")
    primary: Metric = "exact_match"
    until: tuple[str, ...] = ("\n",)
    max_new_tokens: int | None = None
    prompts: Prompts = dataclasses.field(default_factory=Prompts)
    instruction: str = ""

    def __post_init__(self) -> None:
        require(_NAME.fullmatch(self.name) is not None, f"name: expected letters, digits and _, found {self.name!r}")
        require_at_least(self, 1, "version", "max_new_tokens")
        for field in ("hub.splits", "files", "split_off"):
            for split in self._splits_of(field):
                require(_NAME.fullmatch(split) is not None, f"{field}: {split!r} cannot be the name of a split")
        for split, made in self.split_off.items():
            require(made.of != split, f"split_off.{split}: a split cannot be made of itself")
            require(made.of not in self.split_off, f"split_off.{split}: {made.of!r} is itself made of another split")
        require(
            len(self.metrics) > 0 and len(set(self.metrics)) == len(self.metrics),
            f"metrics: expected some of {', '.join(get_args(Metric))}, each once, found {list(self.metrics)}",
        )
        require(
            self.primary in self.metrics,
            f"primary: expected one of the metrics {', '.join(self.metrics)}, found {self.primary!r}",
        )
        for metric in self.metrics:
            require(
                (metric == "regex") == (self.answers_are == "regex"),
                f"metrics: {metric} does not judge answers that are {self.answers_are}; "
                "regular expressions are judged by regex alone, texts by the others",
            )
        require(all(self.until), "until: expected texts that are not empty")

    def _splits_of(self, field: str) -> tuple[str, ...]:
        if field == "hub.splits":
            return tuple(self.hub.splits) if self.hub else ()
        return tuple(getattr(self, field))

    def identity(self) -> dict[str, Any]:
        """All that changes results, as JSON-able values: without the texts for people and the places of files."""
        return {key: value for key, value in to_dict(self).items() if key not in _NO_RESULT}

    def fingerprint(self) -> str:
        """16 hexadecimal digits over `identity`."""
        return fingerprint("qa_task", 1, self.identity(), {})


def list_tasks() -> list[str]:
    """The names of the tasks that need no file, in order."""
    return sorted(path.stem for path in _TASKS.glob("*.yaml"))


def open_task(name_or_path: str | Path) -> TaskDefinition:
    """The definition of that name, or of that YAML file, whose `files` become absolute. Raises ConfigError."""
    text = str(name_or_path)
    if text in list_tasks():
        return load_config(TaskDefinition, _TASKS / f"{text}.yaml")
    path = Path(text)
    if path.suffix not in (".yaml", ".yml"):
        near = difflib.get_close_matches(text, list_tasks(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "give one of them, or the path of a YAML file"
        raise ConfigError(f"task: expected one of {', '.join(list_tasks())}, found {text!r}; {hint}")
    task = load_config(TaskDefinition, path)
    folder = path.resolve().parent
    files = {split: tuple(str(folder / name) for name in names) for split, names in task.files.items()}
    return dataclasses.replace(task, files=files)


def task_to_dict(task: TaskDefinition) -> dict[str, Any]:
    """The definition as it is kept in artifacts and results: everything but the places of files."""
    return {key: value for key, value in to_dict(task).items() if key != "files"}


def task_from_dict(record: Mapping[str, Any], where: str) -> TaskDefinition:
    """The definition that `task_to_dict` made. `where` names it in the ConfigError raised for anything else."""
    return from_dict(TaskDefinition, record, where)
