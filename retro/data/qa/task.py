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
from retro.config.qa_source import Fields, HubData, SplitOff, check_splits
from retro.data.qa.prompt import Prompts

#: docs/qa.md, section Metrics; retro.eval.metrics.qa_scores computes them.
Metric = Literal[
    "exact_match",
    "f1",
    "exact_match_nq",
    "substring",
    "substring_strict",
    "regex",
    "exact_match_literal",
    "f1_literal",
]

_TASKS = Path(__file__).parent / "tasks"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_FOR_PEOPLE = ("title", "source", "licence", "citation")
# Long text, and where a machine keeps the files: not kept with results.
_NOT_KEPT = ("page", "files")


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
        check_splits("hub.splits", self.hub.splits if self.hub else ())
        check_splits("files", self.files)
        check_splits("split_off", self.split_off)
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

    def identity(self) -> dict[str, Any]:
        """All that changes results, as JSON-able values: without the texts for people and the places of files."""
        return {key: value for key, value in to_dict(self).items() if key not in (*_FOR_PEOPLE, *_NOT_KEPT)}

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
    """The definition as it is kept in artifacts and results: all but the page and the places of files."""
    return {key: value for key, value in to_dict(task).items() if key not in _NOT_KEPT}


def task_from_dict(record: Mapping[str, Any], where: str) -> TaskDefinition:
    """The definition that `task_to_dict` made. `where` names it in the ConfigError raised for anything else."""
    return from_dict(TaskDefinition, record, where)
