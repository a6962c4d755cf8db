"""What is to be known about a task, for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import yaml

from retro.config.loader import to_dict
from retro.data.qa.task import TaskDefinition, list_tasks, open_task

_WIDTH = 110


def task_table() -> Iterator[str]:
    """One line for each task that needs no file."""
    tasks = [open_task(name) for name in list_tasks()]
    names, metrics = max(len(task.name) for task in tasks), max(len(task.primary) for task in tasks)
    for task in tasks:
        where = "hub or files" if task.hub else "release" if task.name == "docs" else "files"
        yield f"{task.name:<{names}}  v{task.version}  {task.primary:<{metrics}}  {where:<12}  {task.title}"


def task_page(task: TaskDefinition) -> Iterator[str]:
    """The task's page: origin, licence, splits, metrics, prompt."""
    yield f"{task.name}, version {task.version}: {task.title}"
    yield ""
    for label, text in (("Source", task.source), ("Licence", task.licence), ("Citation", task.citation)):
        if text:
            yield from textwrap.wrap(f"{label}: {text}", _WIDTH, subsequent_indent="  ")
    yield f"Fingerprint: {task.fingerprint()}"
    yield ""
    if task.page:
        yield from task.page.rstrip().splitlines()
        yield ""
    if task.hub is not None:
        splits = ", ".join(f"{split} = {name}" for split, name in task.hub.splits.items())
        named = f", configuration {task.hub.name}" if task.hub.name else ""
        yield f"On the hub: {task.hub.path}{named}, revision {task.hub.revision or 'newest'}; {splits}"
    for split, names in task.files.items():
        yield f"Files of {split}: {', '.join(names)}"
    for split, rule in task.split_off.items():
        yield f"Without its own {split}: {rule.share:g} of {rule.of}, by {rule.by}"
    yield f"Metrics: {', '.join(task.metrics)}; first {task.primary}; answers are {task.answers_are}"
    most = f", at most {task.max_new_tokens} tokens" if task.max_new_tokens else ""
    yield f"Answers end at: {', '.join(map(repr, task.until)) or 'the end-of-text token only'}{most}"
    yield "Prompt of one question, with a passage and the answer:"
    example = task.prompts.format_passage("TITLE", "TEXT") + task.prompts.format_question("QUESTION")
    opening = task.instruction + task.prompts.between_shots if task.instruction else ""
    yield from (f"  | {line}" for line in (opening + example + task.prompts.format_answer("ANSWER")).split("\n"))


def task_yaml(task: TaskDefinition) -> str:
    """The definition as a YAML file that `open_task` reads, all defaults written out."""
    return yaml.dump(to_dict(task), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH)


class _Dumper(yaml.SafeDumper):
    """Long texts as blocks, templates on one line with their line ends visible."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if "\n" not in text else "|" if len(text) > _WIDTH else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
