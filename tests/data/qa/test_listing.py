"""`retro qa tasks` and `retro qa show`: what people see, and what is refused."""

from __future__ import annotations

import pytest

from data_prep.qa_questions import QaQuestionsStage
from data_prep.runner import run_stage
from retro.cli.main import main
from retro.config.qa_source import QaSourceConfig
from retro.data.qa.record import Passage, PreparedQuestion, QaQuestion
from retro.data.qa.task import open_task, task_to_dict
from tests.data.qa.prepared_folder import write_prepared_folder
from tests.data_prep.corpora import write_lines


def run(capsys, *arguments):
    code = main(["qa", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def prepared(tmp_path):
    question = QaQuestion("q1", "Who wrote Emma?", ("Austen",), ("d1",), "books", "author", "Emma", 12.5)
    passages = (
        Passage("Emma", "A novel by Jane Austen.", "d1", 3, 7.25),
        Passage("", "A name.", "d2", 9),
        Passage("Persuasion", "Another novel.", "d1"),
    )
    other = PreparedQuestion(QaQuestion("q2", "Who?", ("b",)), seen=None)
    return write_prepared_folder(
        tmp_path / "prepared",
        task_to_dict(open_task("popqa")),
        {"train": [other], "test": [PreparedQuestion(question, passages, passages[:1], seen=False), other]},
        recall={"n": 2, "evidence": {"n": 1, "1": 1.0, "10": 1.0, "2": 1.0}, "answer": {"1": 0.5}, "by_group": {}},
    )


def test_prepared_questions(prepared, capsys):
    code, out, _ = run(capsys, "show", prepared, "--ids", "q1", "--passages", 2)
    assert code == 0
    assert out.splitlines() == [
        "popqa, version 1: 1 train, 2 test",
        "recall of the evidence (test, 1 questions): 1.000 @1, 1.000 @2, 1.000 @10",
        "recall of the answer (test): 0.500 @1",
        "",
        "=== q1 (group books, relation author, popularity 12.5, evidence not seen in training)",
        "    Who wrote Emma?",
        "    answers: Austen",
        "    evidence: d1",
        "  1. Emma, of d1, score 7.25, EVIDENCE, HOLDS AN ANSWER",
        "       | A novel by Jane Austen.",
        "  2. (no title), of d2",
        "       | A name.",
        "  oracle 1. Emma, of d1, score 7.25, EVIDENCE, HOLDS AN ANSWER",
        "       | A novel by Jane Austen.",
    ]


def test_random_questions_are_seeded(prepared, capsys):
    assert run(capsys, "show", prepared, "--count", 1) == run(capsys, "show", prepared, "--count", 1)
    _, out, _ = run(capsys, "show", prepared, "--count", 9, "--split", "train")
    assert out.count("===") == 1 and "=== q2\n" in out
    assert "===" not in run(capsys, "show", prepared, "--count", 0)[1]


def test_questions_without_passages(tmp_path, capsys):
    path = write_lines(tmp_path / "q.jsonl", [{"question": "Émile?", "answers": ["x"], "evidence": ["d"]}])
    stage = QaQuestionsStage(open_task("custom"), QaSourceConfig(files={"test": (str(path),)}))
    folder = run_stage(stage, tmp_path, progress=False)
    code, out, _ = run(capsys, "show", folder)
    assert code == 0 and out.startswith("custom, version 1: 1 test\n\n=== test-") and "    Émile?\n" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--ids", "q9"], 2, "id 'q9': no such question in split test"),
        (["--split", "dev"], 2, "(train, test), found 'dev'"),
        (["--count", "-1"], 2, "--count: expected 0 or more, found -1"),
    ],
)
def test_what_is_not_there(prepared, capsys, arguments, code, message):
    found, out, err = run(capsys, "show", prepared, *arguments)
    assert found == code and message in err and err.count("\n") == 1 and "===" not in out


def test_folders_that_hold_no_questions(tmp_path, capsys):
    code, _, err = run(capsys, "show", tmp_path / "nothing")
    assert code == 3 and "nothing: prepared questions not found" in err
    (tmp_path / "empty").mkdir()
    code, _, err = run(capsys, "show", tmp_path / "empty")
    assert code == 3 and err.startswith("error: ") and err.count("\n") == 1


def test_a_damaged_artifact(tmp_path, capsys):
    path = write_lines(tmp_path / "q.jsonl", [{"question": "q", "answers": ["x"]}])
    stage = QaQuestionsStage(open_task("custom"), QaSourceConfig(files={"test": (str(path),)}))
    folder = run_stage(stage, tmp_path, progress=False)
    (folder / "task.json").unlink()
    code, _, err = run(capsys, "show", folder)
    assert code == 3 and "task.json" in err and err.count("\n") == 1


def test_the_tasks(capsys):
    code, out, _ = run(capsys, "tasks")
    assert code == 0 and out.startswith("curated_trec") and "retro qa tasks NAME" in out
    code, out, _ = run(capsys, "tasks", "popqa")
    assert code == 0 and "Licence: MIT" in out and "  | Q: QUESTION A: ANSWER" in out


def test_a_definition_to_begin_with(tmp_path, capsys):
    _, out, _ = run(capsys, "tasks", "custom", "--yaml")
    mine = tmp_path / "mine.yaml"
    mine.write_text(out.replace("name: custom", "name: mine"), encoding="utf-8")
    assert open_task(mine).fields == open_task("custom").fields
    code, out, _ = run(capsys, "tasks", mine)
    assert code == 0 and out.startswith("mine, version 1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["popq"], "did you mean 'popqa'"),
        (["nowhere.yaml"], "configuration file not found"),
        (["--yaml"], "expected the name of a task"),
    ],
)
def test_tasks_that_are_none(arguments, message, capsys):
    code, _, err = run(capsys, "tasks", *arguments)
    assert code == 2 and message in err and err.count("\n") == 1
