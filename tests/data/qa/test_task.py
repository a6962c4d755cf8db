"""Task definitions: what is refused, what a fingerprint covers, a user's file means what a built-in one means."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import yaml

from retro.config.errors import ConfigError
from retro.config.loader import from_dict, to_dict
from retro.config.qa_source import Fields, HubData, QaSourceConfig, SplitOff
from retro.data.qa.prompt import Prompts
from retro.data.qa.task import (
    _TASKS,
    TaskDefinition,
    list_tasks,
    open_task,
    task_from_dict,
    task_to_dict,
)
from retro.data.qa.task_page import task_page, task_table, task_yaml

EXPECTED = [
    "curated_trec",
    "custom",
    "docs",
    "efficient_qa",
    "entity_questions",
    "natural_questions",
    "popqa",
    "squad_open",
    "triviaqa",
    "web_questions",
]


def test_the_built_in_tasks():
    assert list_tasks() == EXPECTED


@pytest.mark.parametrize("name", EXPECTED)
def test_every_task_has_a_page(name):
    task = open_task(name)
    assert task.name == name and task.version >= 1
    assert task.title and task.source and task.licence
    assert "Splits." in task.page
    assert task.citation or name in ("custom", "docs")  # these two were not published
    assert "Deviations." in task.page or name in ("custom", "docs")
    page = "\n".join(task_page(task))
    assert task.fingerprint() in page and task.page.splitlines()[0] in page and "ANSWER" in page


def test_the_table_has_a_line_for_each_task():
    assert [line.split()[0] for line in task_table()] == EXPECTED


@pytest.mark.parametrize("name", EXPECTED)
def test_a_task_survives_its_yaml_and_its_record(name, tmp_path):
    task = open_task(name)
    (tmp_path / "mine.yaml").write_text(task_yaml(task), encoding="utf-8")
    assert open_task(tmp_path / "mine.yaml") == task
    kept = task_from_dict(task_to_dict(task), "record")
    assert kept == dataclasses.replace(task, page="", files={})
    assert kept.fingerprint() == task.fingerprint()


def test_a_users_copy_means_what_the_built_in_task_means(tmp_path):
    shutil.copy(_TASKS / "popqa.yaml", tmp_path / "popqa.yaml")
    assert open_task(str(tmp_path / "popqa.yaml")) == open_task("popqa")


def test_files_lie_beside_the_definition(tmp_path, monkeypatch):
    (tmp_path / "mine.yml").write_text("name: mine\nfiles: {test: [q.jsonl, 'part-*.json']}\n")
    monkeypatch.chdir("/")
    task = open_task(tmp_path / "mine.yml")
    assert task.files == {"test": (str(tmp_path / "q.jsonl"), str(tmp_path / "part-*.json"))}


CHANGES = {
    "name": "other",
    "version": 2,
    "hub": HubData("a/b", splits={"test": "validation"}),
    "fields": Fields(question="query"),
    "split_off": {"dev": SplitOff("train", 0.2)},
    "answers_are": "regex",
    "metrics": ("exact_match",),
    "primary": "f1",
    "until": (),
    "max_new_tokens": 15,
    "prompts": Prompts(answer="  {answer}"),
    "instruction": "Answer.",
}
FOR_PEOPLE = {"title": "x", "source": "x", "licence": "x", "citation": "x", "page": "x", "files": {"test": ("x",)}}


def test_the_lists_of_this_test_cover_every_field():
    assert {*CHANGES, *FOR_PEOPLE} == {field.name for field in dataclasses.fields(TaskDefinition)}


@pytest.mark.parametrize("field", sorted(CHANGES))
def test_what_changes_results_changes_the_fingerprint(field):
    task = TaskDefinition(name="mine")
    if field == "answers_are":  # the metrics go with it
        changed = TaskDefinition(name="mine", answers_are="regex", metrics=("regex",), primary="regex")
        assert changed.identity()["answers_are"] != task.identity()["answers_are"]
    else:
        changed = dataclasses.replace(task, **{field: CHANGES[field]})
    assert changed.fingerprint() != task.fingerprint()


@pytest.mark.parametrize("field", sorted(FOR_PEOPLE))
def test_what_is_for_people_does_not(field):
    task = TaskDefinition(name="mine")
    assert dataclasses.replace(task, **{field: FOR_PEOPLE[field]}).fingerprint() == task.fingerprint()


def test_the_fingerprint_does_not_depend_on_the_order_of_keys():
    values = to_dict(open_task("popqa"))
    turned = dict(reversed(values.items()))
    assert from_dict(TaskDefinition, turned).fingerprint() == open_task("popqa").fingerprint()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "Mine"}, "name: expected letters"),
        ({"version": 0}, "version: expected 1 or more"),
        ({"metrics": []}, "metrics: expected some of exact_match"),
        ({"metrics": ["f1", "f1"], "primary": "f1"}, "each once"),
        ({"metrics": ["f1"]}, "primary: expected one of the metrics f1, found 'exact_match'"),
        ({"answers_are": "regex"}, "exact_match does not judge answers that are regex"),
        ({"metrics": ["regex"], "primary": "regex"}, "regex does not judge answers that are text"),
        ({"metrics": ["rouge"], "primary": "f1"}, "metrics"),
        ({"until": [""]}, "until: expected texts"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected 1 or more"),
        ({"split_off": {"dev": {"of": "dev"}}}, "cannot be made of itself"),
        ({"split_off": {"dev": {"of": "x"}, "x": {"of": "train"}}}, "'x' is itself made of another split"),
        ({"split_off": {"dev": {"of": "train", "share": 1}}}, "share: expected above 0 and below 1"),
        ({"split_off": {"Dev": {"of": "train"}}}, "split_off: expected small letters"),
        ({"files": {"te st": ["a.jsonl"]}}, "files: expected small letters"),
        ({"hub": {"path": "a/b"}}, "splits: expected at least one"),
        ({"fields": {"question": ""}}, "question: expected the name of a field or null"),
        ({"fields": {"answers": "answers?"}}, "every record has one"),
        ({"fields": {"answers_text": "json", "answers_separator": "|"}}, "leave one of them out"),
        ({"prompts": {"question": "{query}"}}, "expected a template with {question}"),
        ({"prompts": {"question": "no place"}}, "expected a template with {question}"),
        ({"prompts": {"passage": "{title}"}}, "expected a template with {text}, {title}"),
        ({"prompts": {"answer": "{answer"}}, "not a template"),
        ({"prompts": {"answer": "{answer!r}"}}, "expected a template"),
        ({"prompts": {"answer": "{answer:>9}"}}, "expected a template"),
        ({"prompts": {"answer": "{answer.__class__}"}}, "expected a template"),
        ({"prompts": {"passage": "{title}{title} {text}"}}, "a place twice"),
        ({"metric": "f1"}, "did you mean 'metrics'"),
    ],
)
def test_a_wrong_definition_is_one_clear_line(values, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", **values}))
    with pytest.raises(ConfigError) as caught:
        open_task(path)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(ConfigError, match="found 'triviqa'; did you mean 'triviaqa'"):
        open_task("triviqa")
    with pytest.raises(ConfigError, match=r"missing\.yaml: configuration file not found"):
        open_task("missing.yaml")


def test_prompts_are_the_papers():
    """Wang et al. 2023, section 7.1: templates A and B; Mallen et al. 2023 for PopQA."""
    prompts = open_task("natural_questions").prompts
    written = prompts.format_passage("Paris", "Paris is {big}.") + prompts.format_question("how big {is} it")
    assert written == "title: Paris, source: Paris is {big}.\nquestion: how big {is} it\nanswer:"
    assert prompts.format_passage("", "A text.") == "source: A text.\n"
    assert prompts.format_answer("12 {km}") == " 12 {km}"
    assert open_task("popqa").prompts.format_question("What is X?") == "Q: What is X? A:"


def test_the_source_of_a_preparation_is_checked():
    QaSourceConfig(files={"test": ("a.jsonl",)}, fields={"popularity": "s_pop", "answers_text": "json"})
    for values, message in (
        ({"files": {"test": ("a",)}, "release": "docs"}, "found files and release; remove one"),
        ({"release": "docs", "fields": {"id": "x"}}, "remove fields"),
        ({"release": ""}, "release: expected the name"),
        ({"files": {"test": ()}}, "files.test: expected paths"),
        ({"fields": {"popularty": "x"}}, "did you mean 'popularity'"),
        ({"fields": {"question": None}}, "fields.question: expected a field"),
        ({"fields": {"answers_text": "yaml"}}, "answers_text: expected one, json or python"),
        ({"passages": 0}, "passages: expected 1 or more"),
        ({"max_questions": {"test": 0}}, "max_questions.test: expected 1 or more"),
        ({"splits": ("test", "test")}, "each once"),
        ({"seed": -1}, "seed: expected 0 or more"),
    ):
        with pytest.raises(ConfigError) as caught:
            QaSourceConfig(**values)
        assert message in str(caught.value)


#: name -> (version, fingerprint). What changes the results of a task raises its version; then this line changes too.
VERSIONS = {
    "curated_trec": (1, "4b46a342c84ccc52"),
    "custom": (1, "064165ef817eec51"),
    "docs": (1, "d0717440abd74196"),
    "efficient_qa": (1, "ae3a1f7c36ded549"),
    "entity_questions": (1, "24734ffdc7cb9953"),
    "natural_questions": (1, "25e8c6fb3de67fe7"),
    "popqa": (1, "ab16698104d33613"),
    "squad_open": (1, "269620093d5e06a1"),
    "triviaqa": (1, "b9d4db99eff94147"),
    "web_questions": (1, "a1c17cc43e8d3d89"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_changed_definition_has_a_raised_version(name):
    task = open_task(name)
    assert (task.version, task.fingerprint()) == VERSIONS[name]


def test_the_documented_definition_loads(tmp_path):
    text = (Path(__file__).parents[3] / "docs" / "qa.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(name: city_council\n.*?)```", text, re.DOTALL)
    (tmp_path / "task.yaml").write_text(example, encoding="utf-8")
    task = open_task(tmp_path / "task.yaml")
    assert task.split_off["dev"].by == "evidence" and task.files["test"] == (str(tmp_path / "test.jsonl"),)
