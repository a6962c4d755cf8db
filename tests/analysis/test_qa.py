"""Question answering in arms: who is compared with whom, differences, tests, parts, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from retro.analysis.comparison import compare_runs
from retro.analysis.mcnemar import exact_mcnemar
from retro.analysis.qa_subsets import subset_masks
from retro.analysis.qa_tables import arms_table, detailed_table
from retro.analysis.runs import load_runs
from retro.analysis.wording import headline
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError
from tests.analysis.builders import Shape, build_pair, release, write_json, write_perplexity
from tests.analysis.qa_builders import build_qa_pair, build_qa_run, questions, read_lines, write_lines, write_qa


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The comparison of a GPT and a RETRO in six arms."""
    paths = build_qa_pair(tmp_path_factory.mktemp("qa") / "runs")
    (result,) = compare_runs(load_runs(paths)).qa
    return result


def by_arm(result):
    return {item.arm: item.key for item in result.series}


def compare(*paths, **options):
    return compare_runs(load_runs(paths), **options).qa


def test_arms_of_all_runs_stand_side_by_side_and_the_closed_book_gpt_is_the_reference(found):
    assert [s.arm for s in found.series] == [
        "closed_book", "rag", "retro", "retro/random", "retro/gate_0", "retro++",
    ]  # fmt: skip
    assert found.reference.run == "qa-gpt" and found.questions == 240 and found.left_out == 0
    assert [s.label for s in found.series][2:5] == ["RETRO", "RETRO, random evidence", "RETRO, gate 0"]
    assert len({s.role for s in found.series}) == 6
    assert found.metrics == ("exact_match", "f1", "substring") and found.primary == "exact_match"


def test_scores_and_differences_are_those_of_the_rows(found, tmp_path):
    paths = build_qa_pair(tmp_path / "runs")
    scores = {
        (s["arm"], s["id"]): s["exact_match"] for p in paths for s in read_lines(p / "eval/qa-popqa-test/scores.jsonl")
    }
    arms = by_arm(found)
    for arm, key in arms.items():
        own = [value for (a, _), value in scores.items() if a == arm]
        assert found.score(key).value == pytest.approx(sum(own) / 240)
    for reference, candidate in (("closed_book", "retro"), ("rag", "retro++"), ("retro", "retro/random")):
        contrast = found.contrast(arms[candidate], arms[reference])
        a = [scores[candidate, row["id"]] for row in questions(240, 0)]
        b = [scores[reference, row["id"]] for row in questions(240, 0)]
        only_a = sum(x > y for x, y in zip(a, b, strict=True))
        only_b = sum(y > x for x, y in zip(a, b, strict=True))
        assert (contrast.only_candidate, contrast.only_reference) == (only_a, only_b)
        assert contrast.both + contrast.neither + only_a + only_b == 240
        assert contrast.difference.value == pytest.approx((only_a - only_b) / 240)
        assert contrast.p == exact_mcnemar(only_a, only_b) <= contrast.p_holm
    assert sum(c.subset == "all" for c in found.contrasts) == 15


def test_retrieval_helps_and_random_evidence_does_not(found):
    arms = by_arm(found)
    contrast = found.contrast(arms["retro"], arms["closed_book"], "seen=false")
    assert contrast.difference.excludes_zero and contrast.difference.value > 0 and contrast.p < 0.001
    control = found.contrast(arms["retro/random"], arms["closed_book"], "seen=false")
    assert control.difference.low < control.difference.high and not control.difference.low > 0


def test_evidence_documents_are_resampled_where_they_are_known(found, tmp_path):
    assert (found.units, found.unit) == (120, "evidence documents")
    path = build_qa_run(tmp_path / "gpt", "gpt", ("closed_book", "rag"))
    rows = read_lines(path / "eval/qa-popqa-test/responses.jsonl")
    write_lines(path / "eval/qa-popqa-test/responses.jsonl", [{**row, "evidence": []} for row in rows])
    (alone,) = compare(path)
    assert (alone.units, alone.unit) == (240, "questions")


def test_two_questions_of_one_document_widen_the_interval(tmp_path):
    """Equal scores within documents: the document is the unit, so the interval is about that of half the questions."""
    chance = lambda row, arm, passages: 1.0 if arm == "rag" and int(row["id"][1:]) // 2 % 2 else 0.0  # noqa: E731
    path = build_qa_run(tmp_path / "gpt", "gpt", ("closed_book", "rag"), chance=chance)
    (clustered,) = compare(path)
    rows = read_lines(path / "eval/qa-popqa-test/responses.jsonl")
    write_lines(path / "eval/qa-popqa-test/responses.jsonl", [{**row, "evidence": []} for row in rows])
    (single,) = compare(path)
    width = []
    for result in (clustered, single):
        estimate = result.contrast(result.series[1].key, result.series[0].key).difference
        width.append(estimate.high - estimate.low)
    assert width[0] == pytest.approx(2**0.5 * width[1], rel=0.1)


def test_parts_cover_all_questions(found):
    assert {s.kind for s in found.subsets} == {"all", "seen", "group", "relation", "popularity"}
    for kind in ("seen", "group", "relation", "popularity"):
        parts = found.of_kind(kind)
        assert sum(part.questions for part in parts) == 240
        for item in found.series:
            mean = sum(found.score(item.key, p.key).value * p.questions for p in parts) / 240
            assert mean == pytest.approx(found.score(item.key).value)
    bins = found.of_kind("popularity")
    assert [b.title for b in bins][:3] == ["below 10", "10 to 100", "100 to 1,000"]
    assert bins[-1].title == "100,000 and more"
    inside = [q for q in questions(240, 0) if 100 <= q["popularity"] < 1000]
    assert bins[2].questions == len(inside)


def test_an_edge_belongs_to_the_bin_above_it_and_what_is_below_the_first_to_the_first():
    rows = [{"id": str(i), "popularity": value} for i, value in enumerate([0.0, 9.9, 10.0, 99.0, 100.0, None])]
    found = [(subset.title, mask.tolist()) for subset, mask in subset_masks(rows, np.arange(6), [1, 10, 100])][1:]
    assert found == [
        ("below 10", [True, True, False, False, False, False]),
        ("10 to 100", [False, False, True, True, False, False]),
        ("100 and more", [False, False, False, False, True, False]),
    ]


def test_what_is_unknown_makes_no_parts(tmp_path):
    path = build_qa_run(tmp_path / "gpt", "gpt", ("closed_book", "rag"))
    target = path / "eval/qa-popqa-test"
    rows = read_lines(target / "responses.jsonl")
    blank = {"popularity": None, "relation": "", "group": "", "seen": None}
    write_lines(target / "responses.jsonl", [{**row, **blank} for row in rows])
    content = json.loads((target / "results.json").read_text())
    write_json(
        target / "results.json", {**content, "by_popularity": None, "retrieval": None, "cost": None, "baselines": {}}
    )
    (result,) = compare(path)
    assert [s.key for s in result.subsets] == ["all"]
    assert result.recalls == () and result.costs == () and result.baselines == {}


def test_evaluations_that_differ_in_passages_alone_are_a_sweep(found):
    arms = by_arm(found)
    assert list(found.sweeps) == [arms["retro"]]
    points = found.sweeps[arms["retro"]]
    assert list(points) == [1, 2, 5]
    assert points[5].value == pytest.approx(found.score(arms["retro"]).value)
    assert points[1].value < points[5].value and points[1].low < points[1].value < points[1].high


def test_shots_and_folders_tell_arms_apart(tmp_path):
    path = build_qa_run(tmp_path / "gpt", "gpt", ("closed_book",))
    write_qa(path, "gpt", ("closed_book",), name="qa-shots", shots=5)
    other = build_qa_run(tmp_path / "other", "gpt", ("closed_book",))
    (result,) = compare(path, other)
    assert [s.label for s in result.series] == [
        "closed book, gpt, 0 shots", "closed book, gpt, 5 shots", "closed book, other",
    ]  # fmt: skip
    assert result.sweeps == {}


def test_errors_are_split_into_retrieval_and_reading(found):
    arms = by_arm(found)
    errors = {e.series: e for e in found.retrieval_errors}
    assert set(errors) == {arms["rag"], arms["retro"], arms["retro++"]}
    five, one = errors[arms["retro"]], errors[arms["rag"]]
    rows = questions(240, 0)
    in_five = sum(r["answer_rank"] is not None and r["answer_rank"] < 5 for r in rows)
    assert five.given.value == pytest.approx(in_five / 240)
    assert one.given.value == pytest.approx(sum(r["answer_rank"] == 0 for r in rows) / 240)
    assert five.with_answer.value > five.without_answer.value
    mean = five.with_answer.value * in_five + five.without_answer.value * (240 - in_five)
    assert mean / 240 == pytest.approx(found.score(arms["retro"]).value)
    contrast = found.contrast(arms["retro"], arms["closed_book"])
    assert {name: count for name, (count, _) in five.cells.items()} == {
        "both": contrast.both, "only_reference": contrast.only_reference,
        "only_this": contrast.only_candidate, "neither": contrast.neither,
    }  # fmt: skip
    assert five.wrong == contrast.only_reference + contrast.neither


def test_unanswered_questions_are_left_out_of_every_arm(tmp_path):
    paths = build_qa_pair(tmp_path / "runs")
    target = paths[1] / "eval/qa-popqa-test/scores.jsonl"
    lines = read_lines(target)
    lost = {"exact_match": None, "f1": None, "substring": None}
    write_lines(
        target, [{**line, **lost} if (line["arm"], line["id"]) == ("retro", "q0003") else line for line in lines]
    )
    (result,) = compare(*paths)
    assert (result.questions, result.left_out) == (239, 1)
    assert sum(p.questions for p in result.of_kind("relation")) == 239


def test_a_shorter_evaluation_is_compared_over_the_questions_that_both_answered(tmp_path):
    gpt = build_qa_run(tmp_path / "gpt", "gpt", ("closed_book",))
    retro = build_qa_run(tmp_path / "retro", "retro", ("retro",), count=100)
    (result,) = compare(gpt, retro)
    assert (result.questions, result.left_out) == (100, 140)


def test_metrics_that_are_no_verdict_have_no_mcnemar(tmp_path):
    path = build_qa_run(tmp_path / "gpt", "gpt", ("closed_book", "rag"))
    target = path / "eval/qa-popqa-test/results.json"
    content = json.loads(target.read_text())
    content["task_definition"]["primary"] = "f1"
    write_json(target, content)
    (result,) = compare(path)
    (contrast,) = [c for c in result.contrasts if c.subset == "all"]
    assert result.primary == "f1" and contrast.p is None and contrast.difference.has_interval


def test_other_tasks_and_splits_are_other_comparisons(tmp_path):
    path = build_qa_run(tmp_path / "gpt", "gpt", ("closed_book", "rag"))
    other = write_qa(path, "gpt", ("closed_book",), name="qa-dev")
    content = json.loads((other / "results.json").read_text())
    write_json(other / "results.json", {**content, "split": "dev"})
    results = compare(path)
    assert [(r.task, r.split, len(r.series)) for r in results] == [("popqa", "test", 2), ("popqa", "dev", 1)]


def test_folders_of_one_name_may_hold_different_splits(tmp_path):
    first = build_qa_run(tmp_path / "first", "gpt", ("closed_book",))
    second = build_qa_run(tmp_path / "second", "gpt", ("closed_book",))
    target = second / "eval/qa-popqa-test/results.json"
    write_json(target, {**json.loads(target.read_text()), "split": "dev"})
    assert [(r.split, r.reference.run) for r in compare(first, second)] == [("test", "first"), ("dev", "second")]


def test_documents_that_were_never_trained_on_come_first(tmp_path):
    path = build_qa_run(tmp_path / "gpt", "gpt", ("closed_book", "rag"))
    for split, seen in (("a_seen", True), ("b_unseen", False)):
        other = write_qa(path, "gpt", ("closed_book", "rag"), name=f"qa-{split}")
        content = json.loads((other / "results.json").read_text())
        write_json(other / "results.json", {**content, "split": split})
        rows = read_lines(other / "responses.jsonl")
        write_lines(other / "responses.jsonl", [{**row, "seen": seen} for row in rows])
    comparison = compare_runs(load_runs([path]), draws=200)
    assert [r.split for r in comparison.qa] == ["b_unseen", "test", "a_seen"]
    assert "of popqa, b_unseen (documents never trained on): " in headline(comparison)
    assert "All are about documents never trained on." in arms_table(comparison.qa[0]).caption
    assert detailed_table(comparison.qa[0], "seen") is None


def test_other_questions_of_the_same_id_are_refused(tmp_path):
    gpt = build_qa_run(tmp_path / "gpt", "gpt", ("closed_book",))
    retro = build_qa_run(tmp_path / "retro", "retro", ("retro",))
    target = retro / "eval/qa-popqa-test/responses.jsonl"
    write_lines(target, [{**row, "answers": ["another"]} for row in read_lines(target)])
    with pytest.raises(ArtifactMismatchError, match="'q0000' is not the one of"):
        compare(gpt, retro)


def test_no_question_in_common_is_refused(tmp_path):
    gpt = build_qa_run(tmp_path / "gpt", "gpt", ("closed_book",))
    retro = build_qa_run(tmp_path / "retro", "retro", ("retro",))
    for name in ("responses", "scores"):
        target = retro / f"eval/qa-popqa-test/{name}.jsonl"
        write_lines(target, [{**row, "id": "x" + row["id"]} for row in read_lines(target)])
    with pytest.raises(ArtifactMismatchError, match="found none among 480"):
        compare(gpt, retro)


def drop_results(key):
    def edit(target):
        content = json.loads((target / "results.json").read_text())
        del content[key]
        write_json(target / "results.json", content)

    return edit


def edit_results(**changes):
    def edit(target):
        content = json.loads((target / "results.json").read_text())
        write_json(target / "results.json", {**content, **changes})

    return edit


def edit_lines(name, change):
    def edit(target):
        write_lines(target / name, change(read_lines(target / name)))

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop_results("arms"), "expected an object 'arms'"),
        (drop_results("task_definition"), "results.json: no field 'task_definition'"),
        (drop_results("qa"), "results.json: no field 'qa'"),
        (
            edit_results(qa={"questions": "f", "shots": 1e999, "layout": {"passages": 1}}),
            "results.json: cannot convert",
        ),
        (edit_results(retrieval={"answer": {"few": 1}}), "results.json: retrieval: expected shares by k, found"),
        (
            edit_results(retrieval={"by_group": {"x": {"answer": {"1": "y"}}}}),
            "results.json: retrieval: expected shares",
        ),
        (edit_results(by_popularity={"edges": [1, "x"]}), "results.json: by_popularity.edges: expected numbers"),
        (edit_lines("responses.jsonl", lambda rows: [*rows, rows[0]]), "has question 'q0000' twice"),
        (edit_lines("responses.jsonl", lambda rows: [{**rows[0], "arm": "x"}]), "responses.jsonl:1: arm 'x' is not in"),
        (edit_lines("responses.jsonl", lambda rows: rows[:-1]), "expected the same questions for every arm"),
        (edit_lines("scores.jsonl", lambda rows: rows[1:]), "question 'q0000' has no line in scores.jsonl"),
        (edit_lines("scores.jsonl", lambda rows: [{"id": "q0000", "arm": "rag"}]), "scores.jsonl:1: no field"),
        (edit_lines("scores.jsonl", lambda rows: [{**rows[0], "f1": "high"}]), "scores.jsonl:1: could not convert"),
    ],
)
def test_damage_is_named(tmp_path, edit, message):
    path = build_qa_run(tmp_path / "gpt", "gpt", ("closed_book", "rag"))
    edit(path / "eval/qa-popqa-test")
    with pytest.raises(ArtifactCorruptError, match=message):
        compare(path)


def test_answers_of_models_of_different_releases_can_be_compared_and_their_losses_cannot(tmp_path):
    gpt, retro = build_qa_pair(tmp_path / "runs", metrics=True)
    assert compare_runs(load_runs([gpt, retro]), draws=200).training
    write_json(retro / "release.json", release(tokenizer="another000000000"))
    comparison = compare_runs(load_runs([gpt, retro]), draws=200)
    assert len(comparison.qa[0].series) == 6 and comparison.training == ()
    assert any("different releases" in note for note in comparison.notes)
    write_perplexity(retro, "retro", 0.06, Shape(documents=8, chunks=48, samples=0), 0)
    assert compare_runs(load_runs([gpt, retro]), draws=200).perplexity  # of one release only
    write_perplexity(gpt, "gpt", 0.06, Shape(documents=8, chunks=48, samples=0), 0)
    with pytest.raises(ArtifactMismatchError, match="runs over different text cannot be compared"):
        compare_runs(load_runs([gpt, retro]), draws=200)


def test_an_evaluation_without_scores_is_left_out_with_the_command_that_makes_them(tmp_path):
    path = build_qa_run(tmp_path / "gpt", "gpt", ("closed_book", "rag"))
    (path / "eval/qa-popqa-test/scores.jsonl").unlink()
    result = compare_runs(load_runs([path]))
    assert result.qa == () and any(f"retro eval rescore {path}/eval/qa-popqa-test" in note for note in result.notes)


def test_the_same_runs_give_the_same_numbers_and_other_runs_no_new_field(tmp_path):
    paths = build_qa_pair(tmp_path / "runs")
    runs = load_runs(paths)
    first = json.dumps(compare_runs(runs, draws=200).to_json())
    assert first == json.dumps(compare_runs(load_runs(paths), draws=200).to_json())
    assert "qa" in json.loads(first, parse_constant=lambda name: pytest.fail(name))
    plain = compare_runs(load_runs(build_pair(tmp_path / "plain")), draws=200)
    assert "qa" not in plain.to_json()
