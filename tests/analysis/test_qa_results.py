"""The report reads what `retro eval` writes: results.json and scores.jsonl out of its own code for the rows here."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest

from retro.analysis.comparison import compare_runs
from retro.analysis.runs import load_runs
from retro.config.qa import QaLayoutConfig, parse_arm
from retro.data.qa.record import PreparedQuestion, QaQuestion
from retro.data.qa.task import open_task
from retro.eval.responses import State
from retro.eval.results import write_results
from retro.eval.tasks.qa import QaTask
from retro.eval.tasks.qa_arms import FixedArm
from tests.analysis.builders import write_json
from tests.analysis.qa_builders import METRICS, build_qa_run, read_lines

ARMS = ("closed_book", "rag", "retro", "retro/random")


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """A run whose results and scores are made of its responses by `write_results`."""
    path = build_qa_run(tmp_path_factory.mktemp("run") / "retro", "retro", ARMS)
    folder = path / "eval/qa-popqa-test"
    for name in ("results.json", "scores.jsonl"):
        (folder / name).unlink()
    data = (folder / "responses.jsonl").read_bytes()
    train = [PreparedQuestion(QaQuestion(f"t{i}", "?", (f"Answer {i % 7}",), group="popqa")) for i in range(20)]
    task = QaTask(
        dataclasses.replace(open_task("popqa"), metrics=METRICS, primary="substring"),
        [PreparedQuestion(QaQuestion(str(i), "?", ("a",))) for i in range(240)],
        train,
        [FixedArm(arm, parse_arm(arm)) for arm in ARMS],
        None,
        chunk_length=32,
        questions_fingerprint="0123456789abcdef",
        layout=QaLayoutConfig(),
    )
    identity = {
        "task": task.name, "version": task.version, "split": "test", "checkpoint": "c", "release": "r",
        "num_neighbors": 5, "precision": "fp32", "material": task.identity(),
    }  # fmt: skip
    state = State(identity, {"model": "retro", "step": 1200, "parameters": 2_412_000})
    state.bytes, state.sha256, state.finished = len(data), hashlib.sha256(data).hexdigest(), True
    write_json(folder / "state.json", dataclasses.asdict(state))
    write_results(folder)
    return path


def test_what_retro_eval_writes_is_what_the_report_reads(evaluation):
    stored = json.loads((evaluation / "eval/qa-popqa-test/results.json").read_text())
    (found,) = compare_runs(load_runs([evaluation]), draws=200).qa
    assert (found.task, found.split, found.primary, found.questions) == ("popqa", "test", "substring", 240)
    assert [s.arm for s in found.series] == list(ARMS)
    for item in found.series:
        for metric in found.metrics:
            assert found.score(item.key, "all", metric).value == pytest.approx(stored["arms"][item.arm][metric])
        for value, figures in stored["by_relation"][item.arm].items():
            assert found.score(item.key, f"relation={value}").value == pytest.approx(figures["substring"])
        for state, key in (("seen", "seen=true"), ("unseen", "seen=false")):
            assert found.score(item.key, key).value == pytest.approx(stored["by_seen"][item.arm][state]["substring"])


def test_popularity_bins_are_those_of_the_results(evaluation):
    stored = json.loads((evaluation / "eval/qa-popqa-test/results.json").read_text())["by_popularity"]
    (found,) = compare_runs(load_runs([evaluation]), draws=200).qa
    bins = found.of_kind("popularity")
    for item in found.series:
        own = [(found.score(item.key, b.key).value, b.questions) for b in bins]
        theirs = [(figures["substring"], figures["n"]) for figures in stored["arms"][item.arm] if figures["n"]]
        assert own == [(pytest.approx(value), n) for value, n in theirs]


def test_recall_guesses_costs_and_what_was_read_are_found(evaluation):
    (found,) = compare_runs(load_runs([evaluation]), draws=200).qa
    rows = [r for r in read_lines(evaluation / "eval/qa-popqa-test/responses.jsonl") if r["arm"] == "retro"]
    assert set(found.baselines) == {"commonest_answer", "commonest_of_group", "commonest_of_relation"}
    assert [recall.source for recall in found.recalls] == ["", "popqa", "squad"]
    shares = found.recalls[0].shares
    assert shares["answer"][5] == pytest.approx(
        sum((r["answer_rank"] or 9) < 5 or r["answer_rank"] == 0 for r in rows) / 240
    )
    assert set(shares["evidence"]) == set(shares["answer"])
    cost = next(c for c in found.costs if c.series.endswith("/retro"))
    assert cost.encoder_tokens == pytest.approx(320) and cost.latency_ms == pytest.approx(52.4)
    assert [e.series.rpartition("test/")[2] for e in found.retrieval_errors] == ["rag", "retro"]
