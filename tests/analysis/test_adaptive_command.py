"""`retro qa adaptive` over stored evaluations: figures, policies, and messages for what cannot be."""

import json
import math
import shutil

import numpy as np
import pytest

from retro.artifacts.retrieval_rule import ConfidenceRule, PopularityRule, open_rule
from retro.cli.main import main
from retro.eval.responses import open_log

ANSWERS = ["Paris"]


def write_evaluation(folder, arms, *, popularity=True, task="popqa", questions="f00d"):
    """A finished evaluation. arms: name -> how sure of being right the arm is, as a function of log popularity."""
    rng = np.random.default_rng(5)
    logs = {"author": rng.uniform(0, 12, 120), "color": rng.uniform(0, 12, 80)}
    log = open_log(folder, {"task": "qa", "version": 1}, {})
    rows = []
    for arm, knows in arms.items():
        for relation, values in logs.items():
            for i, value in enumerate(values):
                right = bool(rng.random() < knows(value))
                closed = arm == "closed_book"
                text = " Paris" if right else " Rome"
                rows.append(
                    {"id": f"{relation}-{i}", "arm": arm, "question": "?", "answers": ANSWERS, "group": "",
                     "relation": relation, "subject": "s", "popularity": math.exp(value) if popularity else None,
                     "object_popularity": None, "seen": None, "text": text, "prediction": text.strip(),
                     "token_logprobs": [-0.1 if right else -2.0, -0.1], "prompt_tokens": 10 if closed else 60,
                     "encoder_tokens": 0, "new_tokens": 1, "seconds": 0.5 if closed else 1.5,
                     "latency_ms": (20 if closed else 50) if i % 4 == 0 else None,
                     "passages": [] if closed else [{"document": "d", "chunk": 1, "where": "prompt"}]}
                )  # fmt: skip
    log.commit(rows, None, {}, {}, finished=True, units=len(rows))
    definition = {"name": task, "version": 1, "metrics": ["exact_match", "f1"], "primary": "exact_match"}
    results = {
        "task": "qa",
        "task_definition": definition,
        "split": "test",
        "arms": {arm: {} for arm in arms},
        "qa": {"questions": questions, "max_new_tokens": 16},
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def knows(log):
    return 1 / (1 + math.exp(-(log - 6)))


@pytest.fixture
def evaluation(tmp_path):
    arms = {"closed_book": knows, "rag": lambda log: 0.5, "rag/random": lambda log: 0.1}
    return write_evaluation(tmp_path / "popqa", arms)


def test_figures_and_policies_of_an_evaluation(evaluation, tmp_path, capsys):
    cost = tmp_path / "cost.json"
    cost.write_text(json.dumps({"unit": "USD", "per_token": {"prompt": 0.001}, "search_ms": 100}))
    command = ["qa", "adaptive", str(evaluation), "--closed", "closed_book", "--retrieval", "rag", "--splits", "20"]
    assert main([*command, "--cost", str(cost), "--draws", "200"]) == 0
    content = json.loads((evaluation / "adaptive.json").read_text())
    assert (content["metric"], content["task"], content["settings"]["plan"]["splits"]) == ("exact_match", "popqa", 20)
    (figures,) = content["comparisons"]
    assert figures["questions"] == 200 and set(figures["policies"]) == {"popularity", "confidence"}
    expenses = figures["policies"]["popularity"]["expenses"]
    assert (expenses["cost"]["never"], expenses["cost"]["always"]) == (pytest.approx(0.01), pytest.approx(0.06))
    assert (expenses["latency_ms"]["never"], expenses["latency_ms"]["always"]) == (20, 150)
    assert (expenses["seconds"]["never"], expenses["seconds"]["always"]) == (0.5, pytest.approx(1.6))
    rule = open_rule(evaluation / "policy.json")
    assert isinstance(rule, PopularityRule) and set(rule.thresholds) == {"author", "color"}
    assert (rule.arms.closed, rule.arms.retrieval) == ("closed_book", "rag")
    assert rule.fitted == {
        "task": "popqa",
        "split": "test",
        "metric": "exact_match",
        "prepared": "f00d",
        "questions": 200,
    }
    sure = open_rule(evaluation / "policy-confidence.json")
    assert isinstance(sure, ConfidenceRule) and (sure.tokens, sure.measure) == (16, "mean")
    assert not sure.retrieves([-0.1, -0.1]) and sure.retrieves([-2.0, -0.1])
    printed = capsys.readouterr().out
    assert "rag where closed_book needs it: 200 questions" in printed
    for text in ("never (closed_book)", "always (rag)", "oracle", "popularity: +", "USD", "policy.json"):
        assert text in printed
    # The confidence of this model tells right from wrong: as good as the oracle can be without seeing the other arm.
    accuracy = figures["policies"]["confidence"]["accuracy"]
    assert accuracy["adaptive"]["mean"] == pytest.approx(accuracy["oracle"]["mean"], abs=1e-9)
    first = (evaluation / "adaptive.json").read_bytes()
    assert main([*command, "--cost", str(cost), "--draws", "200"]) == 0
    assert (evaluation / "adaptive.json").read_bytes() == first


def test_several_arms_of_several_evaluations(evaluation, tmp_path):
    other = write_evaluation(tmp_path / "genread", {"rag": lambda log: 0.8})
    out = tmp_path / "out"
    out.mkdir()
    command = [
        "qa",
        "adaptive",
        str(evaluation),
        str(other),
        "--closed",
        "closed_book",
        "--splits",
        "3",
        "-o",
        str(out),
    ]
    arms = ["--retrieval", f"rag@{other}", "rag/random", "--policy", "popularity", "--metric", "f1"]
    assert main([*command, *arms]) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"adaptive.json", "policy-rag.json", "policy-rag_random.json"}
    good, bad = json.loads((out / "adaptive.json").read_text())["comparisons"]
    assert good["all"]["retrieval"] > 0.7 and bad["all"]["retrieval"] < 0.2
    assert bad["policies"]["popularity"]["share_retrieved"]["mean"] < 0.3


def test_without_popularity_there_is_confidence(tmp_path, capsys):
    folder = write_evaluation(tmp_path / "nq", {"closed_book": knows, "rag": lambda log: 0.5}, popularity=False)
    command = ["qa", "adaptive", str(folder), "--closed", "closed_book", "--retrieval", "rag", "--splits", "3"]
    assert main(command) == 0
    assert "no question has a popularity" in capsys.readouterr().out
    assert open_rule(folder / "policy.json").kind == "confidence"
    assert main([*command, "--policy", "popularity"]) == 3
    assert "expected questions with the popularity" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--closed", "closed"], 2, "closed: expected one of the arms closed_book, rag, rag/random, found 'closed'"),
        (["--retrieval", "rag@elsewhere"], 2, "retrieval: elsewhere is none of the evaluations given"),
        (["--retrieval", "rag", "rag"], 2, "retrieval: expected each arm once"),
        (["--metric", "bleu"], 2, "metric: expected one of exact_match"),
        (["--splits", "0"], 2, "splits: expected 1 to 100000, found 0"),
        (["--min-questions", "0"], 2, "min-questions: expected 1 or more, found 0"),
        (["--dev", "1"], 2, "dev: expected a share above 0 and below 1"),
        (["--seed", "-1"], 2, "seed: expected 0 or more"),
        (["--policy", "confidence", "confidence"], 2, "policy: expected each once"),
        (["--cost", "nowhere.json"], 2, "cost: nowhere.json: expected a JSON file"),
        (["-o", "nowhere"], 2, "output: expected a folder, found none at nowhere"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(evaluation, capsys, options, code, message):
    command = ["qa", "adaptive", str(evaluation), "--closed", "closed_book", "--retrieval", "rag", *options]
    assert main(command) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (evaluation / "adaptive.json").exists()


def test_evaluations_must_be_of_one_task(evaluation, tmp_path, capsys):
    other = write_evaluation(tmp_path / "other", {"rag": knows}, task="triviaqa")
    command = ["qa", "adaptive", str(evaluation), str(other), "--closed", "closed_book", "--retrieval", "rag"]
    assert main(command) == 2
    assert "expected an evaluation of popqa, split test" in capsys.readouterr().err
    write_evaluation(tmp_path / "same", {"rag": knows})
    command[3] = str(tmp_path / "same")
    assert main(command) == 2
    assert "is in" in capsys.readouterr().err
    (evaluation / "results.json").write_text("{}")
    assert main(["qa", "adaptive", str(evaluation), "--closed", "a", "--retrieval", "b"]) == 3
    assert "no field 'task_definition'" in capsys.readouterr().err


def rewrite(evaluation, change):
    """The same evaluation with other rows; change: of a row in place, False = the row is left out."""
    rows = [json.loads(line) for line in (evaluation / "responses.jsonl").read_text().splitlines()]
    results = (evaluation / "results.json").read_text()
    shutil.rmtree(evaluation)
    log = open_log(evaluation, {"task": "qa", "version": 1}, {})
    log.commit([row for row in rows if change(row) is not False], None, {}, {}, finished=True, units=1)
    (evaluation / "results.json").write_text(results)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prediction", 5, "expected a response of task qa"),
        ("answers", None, "expected a response of task qa"),
        ("answers", [], "expected a response of task qa"),
        ("token_logprobs", "abc", "token_logprobs: expected a list of numbers, found 'abc'"),
        ("token_logprobs", [None], "token_logprobs: expected a list of numbers, found [None]"),
        ("popularity", 10**400, "popularity: expected a number, found 1000"),
        ("evidence", 5, "evidence: expected a list of documents, found 5"),
    ],
)
def test_rows_that_are_no_responses_are_named(evaluation, capsys, field, value, message):
    rewrite(evaluation, lambda row: row.update({field: value}))
    command = ["qa", "adaptive", str(evaluation), "--closed", "closed_book", "--retrieval", "rag", "--splits", "3"]
    assert main(command) == 3
    error = capsys.readouterr().err
    assert f"question 'author-0': {message}" in error and error.count("\n") == 1 and len(error) < 400
    assert not (evaluation / "adaptive.json").exists()


def test_relations_of_one_question_each_leave_nothing_to_test(evaluation, capsys):
    def alone(row):
        row["relation"] = row["id"]
        return row["id"].endswith("-7") or row["id"].startswith("color-1")

    rewrite(evaluation, alone)
    command = ["qa", "adaptive", str(evaluation), "--closed", "closed_book", "--retrieval", "rag", "--splits", "3"]
    assert main([*command, "--min-questions", "1"]) == 3
    error = capsys.readouterr().err
    assert "relations of two questions or more" in error and "--min-questions" in error and error.count("\n") == 1
    assert main(command) == 0
