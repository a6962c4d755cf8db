"""Comparison numbers by hand, missing parts, refusals."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest

from retro.analysis.comparison import compare_runs, config_differences, text_fingerprints
from retro.analysis.curves import moment_at, thin, time_to_reach
from retro.analysis.perplexity import BUCKETS
from retro.analysis.runs import load_run, load_runs
from retro.analysis.tables import training_table
from retro.analysis.wording import headline, relative_with_interval, supporting_sentences
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ConfigError
from tests.analysis.builders import Shape, build_pair, build_run, read_lines, release, write_json, write_lines

SMALL = Shape(documents=8, chunks=48, samples=2, questions=30)
GPT, ON, OFF, SHUFFLED = "demo-gpt/off", "demo-retro/on", "demo-retro/off", "demo-retro/shuffled"


def rows_of(run, name="perplexity-test"):
    return run.evaluations[name].responses


def bpb(rows, mode):
    return sum(row["bits"][mode] for row in rows) / sum(row["bytes"] for row in rows)


# ---------------------------------------------------------------- perplexity


def test_scores_and_contrasts_equal_plain_sums(pair, comparison):
    gpt, retro = map(rows_of, pair)
    result = comparison.main_perplexity
    assert result.score(GPT).value == pytest.approx(bpb(gpt, "off"))
    assert result.score(ON).value == pytest.approx(bpb(retro, "on"))
    contrast = result.contrast(ON, GPT)
    assert contrast.gain.value == pytest.approx(bpb(gpt, "off") - bpb(retro, "on"))
    assert contrast.relative.value == pytest.approx(bpb(retro, "on") / bpb(gpt, "off") - 1)
    assert contrast.gain.low < contrast.gain.value < contrast.gain.high
    within = result.contrast(ON, OFF)
    assert within.gain.value == pytest.approx(bpb(retro, "off") - bpb(retro, "on"))


def test_subsets_are_what_their_names_say(pair, comparison):
    gpt, retro = map(rows_of, pair)
    result = comparison.main_perplexity
    chosen = {
        "all": lambda row: True,
        "low_overlap": lambda row: row["overlap"] <= 0.5,
        "served": lambda row: row["index"] > 0 and row["document_chunk"] > 0,
        "unserved": lambda row: row["index"] == 0 or row["document_chunk"] == 0,
    }
    assert [subset.key for subset in result.subsets] == list(chosen)
    for subset in result.subsets:
        kept = [i for i, row in enumerate(retro) if chosen[subset.key](row)]
        assert subset.chunks == len(kept)
        assert subset.num_bytes == sum(retro[i]["bytes"] for i in kept)
        assert subset.documents == len({retro[i]["document"] for i in kept})
        assert result.score(GPT, subset.key).value == pytest.approx(bpb([gpt[i] for i in kept], "off"))
        assert result.score(ON, subset.key).value == pytest.approx(bpb([retro[i] for i in kept], "on"))


def test_buckets_split_all_chunks(comparison):
    result = comparison.main_perplexity
    assert len(result.buckets) == len(BUCKETS)
    assert sum(bucket.chunks for bucket in result.buckets) == 300
    assert [bucket.title for bucket in result.buckets][:2] == ["[0, 0.125]", "(0.125, 0.25]"]


def test_leakage_curve_is_cumulative(pair, comparison):
    gpt, retro = map(rows_of, pair)
    curve = comparison.main_perplexity.leakage
    for alpha, chunks, share, own, base, gain in zip(
        curve.alphas,
        curve.chunks,
        curve.share_of_bytes,
        curve.bits_per_byte[ON],
        curve.bits_per_byte[GPT],
        curve.gain[ON],
        strict=True,
    ):
        kept = [i for i, row in enumerate(retro) if row["overlap"] <= alpha]
        assert chunks == len(kept)
        assert share == pytest.approx(sum(retro[i]["bytes"] for i in kept) / sum(row["bytes"] for row in retro))
        assert own.value == pytest.approx(bpb([retro[i] for i in kept], "on"))
        assert base.value == pytest.approx(bpb([gpt[i] for i in kept], "off"))
        assert gain.value == pytest.approx(base.value - own.value)
    assert curve.share_of_bytes[-1] == 1.0


def test_loss_by_position_over_served_chunks(pair, comparison):
    retro = rows_of(pair[1])
    curve = comparison.main_perplexity.positions
    served = [row for row in retro if row["index"] > 0 and row["document_chunk"] > 0]
    for number, (start, stop) in enumerate(zip(curve.starts, curve.stops, strict=True)):
        values = [-v for row in served for v in row["logprobs"]["on"][start : stop + 1]]
        assert curve.loss[ON][number].value == pytest.approx(np.mean(values))
    assert curve.starts[0] == 0 and curve.stops[-1] == 63
    assert all(b == a + 1 for a, b in zip(curve.stops, curve.starts[1:], strict=False))


def test_share_of_the_gain_lost_when_shuffled(pair, comparison):
    gpt, retro = map(rows_of, pair)
    expected = (bpb(retro, "shuffled") - bpb(retro, "on")) / (bpb(gpt, "off") - bpb(retro, "on"))
    share = comparison.main_perplexity.shuffled[0].share
    assert share.value == pytest.approx(expected) and share.low < expected < share.high


def test_no_gain_no_share(tmp_path):
    runs = load_runs(build_pair(tmp_path / "runs", gain=0.0))
    found = compare_runs(runs)
    assert not found.main_perplexity.contrast(ON, GPT).gain.value > 0
    assert found.main_perplexity.shuffled[0].share is None


def test_order_of_lines_does_not_matter(tmp_path, comparison, pair_paths):
    copied = [shutil.copytree(path, tmp_path / "runs" / path.name) for path in pair_paths]
    responses = copied[1] / "eval/perplexity-test/responses.jsonl"
    write_lines(responses, read_lines(responses)[::-1])
    again = compare_runs(load_runs(copied)).main_perplexity.contrast(ON, GPT)
    assert again.gain.value == pytest.approx(comparison.main_perplexity.contrast(ON, GPT).gain.value)
    assert again.gain.low == pytest.approx(comparison.main_perplexity.contrast(ON, GPT).gain.low)


def test_missing_scores_are_left_out_of_every_series(tmp_path):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    responses = paths[1] / "eval/perplexity-test/responses.jsonl"
    rows = read_lines(responses)
    rows[5]["bits"]["shuffled"] = None
    write_lines(responses, rows)
    result = compare_runs(load_runs(paths)).main_perplexity
    gpt = read_lines(paths[0] / "eval/perplexity-test/responses.jsonl")
    assert result.left_out == 1 and result.subsets[0].chunks == 47
    assert result.score(GPT).value == pytest.approx(bpb(gpt[:5] + gpt[6:], "off"))


def test_gpt_without_overlap_takes_it_from_retro(pair, comparison):
    assert all(row["overlap"] is None for row in rows_of(pair[0]))
    assert comparison.main_perplexity.leakage is not None


def test_without_any_overlap_there_is_no_leakage_curve(tmp_path):
    run = build_run(tmp_path / "run", "gpt", shape=SMALL)
    result = compare_runs([load_run(run)]).main_perplexity
    assert result.leakage is None and result.buckets == ()
    assert "low_overlap" not in [subset.key for subset in result.subsets]


def test_one_retro_is_compared_with_itself(pair):
    result = compare_runs(pair[1:]).main_perplexity
    assert result.main == (ON,)
    assert result.contrast(ON, OFF).gain.value > 0
    assert headline(compare_runs(pair[1:])).startswith("RETRO ")


def test_three_runs_share_the_reference(tmp_path):
    paths = [*build_pair(tmp_path / "runs", shape=SMALL), build_run(tmp_path / "runs" / "larger", "retro", 0.1, SMALL)]
    found = compare_runs(load_runs(paths))
    result = found.main_perplexity
    assert result.main == (GPT, ON, "larger/on")
    assert result.contrast("larger/on", GPT).gain.value > result.contrast(ON, GPT).gain.value
    assert result.labels()["larger/on"] == "larger" and found.run("demo-gpt").title == "GPT"
    assert len({series.role for series in result.series if series.mode == "on"}) == 2


# ---------------------------------------------------------------- questions


def test_question_scores_by_hand(pair, comparison):
    (result,) = comparison.questions
    rows = rows_of(pair[1], "docs_qa")
    scores = {score.series: score for score in result.scores}
    means = {
        mode: np.mean([row["exact_match"] for row in rows if row["mode"] == mode]) for mode in ("on", "off", "shuffled")
    }
    for mode, key in (("on", ON), ("off", OFF), ("shuffled", SHUFFLED)):
        assert scores[key].exact_match.value == pytest.approx(means[mode])
    base = np.mean([row["exact_match"] for row in rows_of(pair[0], "docs_qa")])
    contrast = next(c for c in result.contrasts if (c.candidate, c.reference) == (ON, GPT))
    assert contrast.exact_match.value == pytest.approx(means["on"] - base)
    assert contrast.exact_match.low < contrast.exact_match.value < contrast.exact_match.high
    assert (result.questions, result.units, result.unit) == (120, 40, "documents")
    assert result.controls == {"most frequent answer": {"exact_match": 0.092, "f1": 0.104}}


def test_recall_and_speed_are_taken_over(comparison):
    assert comparison.questions[0].retrieval["document"] == {"1": 0.5, "2": 0.625}
    assert [run.eval_tokens_per_s for run in comparison.runs] == [15500.0, 9000.0]


def test_utilisation_is_shown_and_may_be_missing(tmp_path):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    assert [run.training.median_mfu for run in compare_runs(load_runs(paths)).runs] == [0.5, 0.45]
    lines = read_lines(paths[0] / "metrics.jsonl")  # of a version that did not count operations
    write_lines(paths[0] / "metrics.jsonl", [{k: v for k, v in row.items() if k != "mfu"} for row in lines])
    comparison = compare_runs(load_runs(paths))
    assert [run.training.median_mfu for run in comparison.runs] == [None, 0.45]
    column = training_table(comparison).heads.index("MFU")
    assert [row.cells[column] for row in training_table(comparison).rows] == ["-", "45.0%"]


def test_of_two_overlaps_the_larger_counts(tmp_path):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    responses = paths[0] / "eval/perplexity-test/responses.jsonl"
    write_lines(responses, [{**row, "overlap": 0.9} for row in read_lines(responses)])
    result = compare_runs(load_runs(paths)).main_perplexity
    assert next(s for s in result.subsets if s.key == "low_overlap").chunks == 0
    assert result.contrast(ON, GPT, "low_overlap").gain.value is None


def test_unanswered_questions_are_left_out_everywhere(tmp_path):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    responses = paths[1] / "eval/docs_qa/responses.jsonl"
    rows = read_lines(responses)
    rows[0].update(exact_match=None, f1=None)
    write_lines(responses, rows)
    (result,) = compare_runs(load_runs(paths)).questions
    assert (result.questions, result.left_out) == (29, 1)


def test_other_questions_are_refused(tmp_path):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    responses = paths[1] / "eval/docs_qa/responses.jsonl"
    write_lines(responses, [row for row in read_lines(responses) if row["id"] != "question-3"])
    with pytest.raises(ArtifactMismatchError, match="not the same questions"):
        compare_runs(load_runs(paths))


# ---------------------------------------------------------------- training


def set_validation(path, points, steps=None):
    """Replace the validation lines by (step, seconds, loss) and keep the training lines up to the last of them."""
    lines = [line for line in read_lines(path / "metrics.jsonl") if line["event"] == "train"]
    lines += [
        {"event": "validation", "step": s, "loss": loss, "bits_per_byte": loss / 2, "elapsed_s": t}
        for s, t, loss in points
    ]
    write_lines(path / "metrics.jsonl", lines)
    if steps is not None:
        config = (path / "config.yaml").read_text().replace("steps: 1200", f"steps: {steps}")
        (path / "config.yaml").write_text(config)


def test_equal_steps_and_equal_time_by_hand(tmp_path):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    set_validation(paths[0], [(100, 10.0, 4.0), (200, 20.0, 3.0)], steps=200)
    set_validation(paths[1], [(100, 15.0, 3.8), (200, 35.0, 2.6)], steps=200)
    (found,) = compare_runs(load_runs(paths)).training
    own, base = found.equal_steps
    assert (own.step, own.loss, base.loss, own.interpolated) == (200, 2.6, 3.0, False)
    own, base = found.equal_time
    assert own.elapsed_s == base.elapsed_s == 20.0
    assert own.loss == pytest.approx(3.8 - 0.25 * 1.2) and base.loss == 3.0
    assert own.step == pytest.approx(125) and own.share_of_steps == pytest.approx(0.625) and own.interpolated
    assert own.bits_per_byte == pytest.approx(own.loss / 2)
    # 3.8 -> 2.6 within 15..35 s passes 3.0 at two thirds of the way.
    assert found.seconds_to_match == pytest.approx(15 + 20 * 2 / 3)
    said = " ".join(supporting_sentences(compare_runs(load_runs(paths))))
    assert "RETRO was at 62% of its steps" in said and "read between two validations" in said


def test_step_cost_is_a_ratio_of_seconds_per_token(comparison):
    (found,) = comparison.training
    assert found.step_cost == pytest.approx(0.52 / 0.305) and found.same_data


def test_other_seed_is_not_the_same_data(tmp_path):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    config = paths[1] / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 1"))
    found = compare_runs(load_runs(paths))
    assert not found.training[0].same_data
    assert "not the same data" in " ".join(supporting_sentences(found))
    assert found.config_differences["seed"] == {"demo-gpt": 0, "demo-retro": 1}


def test_nothing_is_extrapolated(pair):
    assert moment_at(pair[0], "step", 1201) is None and moment_at(pair[0], "step", 99) is None
    assert moment_at(pair[0], "step", 150).interpolated


def test_a_loss_that_is_never_reached(pair):
    assert time_to_reach(pair[0], 0.5) is None
    first = pair[0].metrics.validation
    assert time_to_reach(pair[0], 100.0) == first["elapsed_s"][0]


def test_runs_of_unequal_length_meet_at_the_shorter(tmp_path):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    rows = [row for row in read_lines(paths[1] / "metrics.jsonl") if row["step"] <= 600]
    write_lines(paths[1] / "metrics.jsonl", rows)
    found = compare_runs(load_runs(paths))
    assert found.training[0].equal_steps[0].step == 600
    assert any("differ in training steps" in note for note in found.notes)


def test_the_same_data_is_told_where_both_runs_have_been(tmp_path):
    """A longer run's later steps, whose numbers of scored tokens vary, do not make the shared ones other data."""
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    for path, last in zip(paths, (1200, 600), strict=True):
        rows = [row for row in read_lines(path / "metrics.jsonl") if row["step"] <= last]
        for row in rows:
            if row["event"] == "train":
                row["tokens"] = row["step"] * 8192 - row["step"] ** 2 // 1000
        write_lines(path / "metrics.jsonl", rows)
    assert compare_runs(load_runs(paths)).training[0].same_data
    rows = read_lines(paths[1] / "metrics.jsonl")
    for row in rows:
        if row["event"] == "train":
            row["tokens"] += 1
    write_lines(paths[1] / "metrics.jsonl", rows)
    assert not compare_runs(load_runs(paths)).training[0].same_data


def test_equal_steps_say_whose_schedule_had_not_ended(tmp_path):
    """A run of twice the steps has not cooled down where the shorter one has: that flatters the shorter one."""
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    set_validation(paths[0], [(100, 10.0, 4.0), (200, 20.0, 3.0)], steps=400)
    set_validation(paths[1], [(100, 15.0, 3.8), (200, 20.0, 2.6)], steps=200)
    (sentence,) = [s for s in supporting_sentences(compare_runs(load_runs(paths))) if s.startswith("Equal steps")]
    assert "GPT was at 50% of its steps" in sentence and "RETRO was" not in sentence


def test_an_evaluation_of_an_earlier_checkpoint_is_noted(tmp_path):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    results = paths[1] / "eval" / "perplexity-test" / "results.json"

    def notes(step):
        results.write_text(json.dumps({**json.loads(results.read_text()), "step": step}))
        return [note for note in compare_runs(load_runs(paths)).notes if "step" in note]

    assert notes(1200) == []
    (note,) = notes(800)
    assert "demo-retro" in note and "800" in note and "1,200" in note and "overwrite=true" in note


def test_thinning_keeps_means():
    x, y = np.arange(1000.0), np.sin(np.arange(1000.0))
    y[10] = np.nan
    short_x, short_y = thin(x, y, 100)
    assert len(short_x) == 100 and short_x[0] < short_x[-1]
    keep = np.isfinite(y)
    widths = np.diff(np.linspace(0, keep.sum(), 101).astype(int))
    assert np.sum(short_y * widths) == pytest.approx(y[keep].sum())
    assert thin(x[:5], y[:5], 100)[1].tolist() == y[:5].tolist()


# ---------------------------------------------------------------- refusals and gaps


@pytest.mark.parametrize("change", [{"tokenizer": "1" * 16}, {"test_chunks": "2" * 16}])
def test_other_text_is_refused(tmp_path, change):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    write_json(paths[1] / "release.json", release(**change))
    with pytest.raises(ArtifactMismatchError, match="same release"):
        compare_runs(load_runs(paths))


def test_another_database_over_the_same_text_is_allowed(tmp_path):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    other = release()
    other["database"]["searcher"]["fingerprint"] = "3" * 16
    other["splits"]["test"]["neighbors"]["fingerprint"] = "4" * 16
    write_json(paths[1] / "release.json", other)
    assert compare_runs(load_runs(paths)).main_perplexity is not None


def test_fingerprints_without_known_names_all_count():
    assert text_fingerprints({"fingerprint": "abc", "parts": [{"fingerprint": "def"}]}) == {
        "release": "abc",
        "parts.0": "def",
    }


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: rows[:-1], "expected its 48 scored chunks, found 47"),
        (lambda rows: [{**row, "chunk": row["chunk"] + 1} for row in rows], "of which 47 are shared"),
        (lambda rows: [{**rows[0], "bytes": rows[0]["bytes"] + 1}, *rows[1:]], "chunk 0: expected num_bytes"),
        (lambda rows: [{**row, "document": "the same"} for row in rows], "belong to other documents"),
    ],
)
def test_other_chunks_are_refused(tmp_path, edit, message):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    responses = paths[1] / "eval/perplexity-test/responses.jsonl"
    write_lines(responses, edit(read_lines(responses)))
    with pytest.raises(ArtifactMismatchError, match=message):
        compare_runs(load_runs(paths))


def test_scores_in_another_precision_are_refused(tmp_path):
    """bfloat16 rounds losses by more than what models may differ by."""
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    for path, precision in zip(paths, ("fp32", "bf16"), strict=True):
        results = path / "eval" / "perplexity-test" / "results.json"
        write_json(results, {**json.loads(results.read_text()), "precision": precision})
    with pytest.raises(ArtifactMismatchError, match=r"'fp32'.*demo-gpt.*'bf16'.*same version and configuration"):
        compare_runs(load_runs(paths))


def test_other_version_of_the_task_is_refused(tmp_path):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    path = paths[1] / "eval/docs_qa/results.json"
    write_json(path, {**json.loads(path.read_text()), "version": 2})
    with pytest.raises(ArtifactMismatchError, match="same version"):
        compare_runs(load_runs(paths))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda row: row.pop("bytes"), "no field 'bytes'"),
        (lambda row: row.update(tokens="many"), "expected an integer for 'tokens'"),
        (lambda row: row["bits"].update(on=math.inf), "expected a finite number for bits of mode on"),
        (lambda row: row["bits"].pop("off"), "no field 'off'"),
        (lambda row: row.update(chunk=0), "expected every chunk once"),
    ],
)
def test_wrong_responses_are_corrupt(tmp_path, edit, message):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    responses = paths[1] / "eval/perplexity-test/responses.jsonl"
    rows = read_lines(responses)
    edit(rows[3])
    write_lines(responses, rows)
    with pytest.raises(ArtifactCorruptError, match=message):
        compare_runs(load_runs(paths))


def test_gaps_name_the_command_that_fills_them(tmp_path):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    shutil.rmtree(paths[1] / "eval")
    (paths[0] / "metrics.jsonl").unlink()
    found = compare_runs(load_runs(paths))
    notes = " ".join(found.notes)
    assert f"retro eval configs/eval/perplexity.yaml checkpoint={paths[1]}" in notes
    assert f"retro eval configs/eval/docs_qa.yaml checkpoint={paths[1]}" in notes
    assert "demo-gpt has no training metrics" in notes
    assert found.main_perplexity.main == (GPT,)


def test_no_evaluation_at_all_speaks_of_validation(tmp_path):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    for path in paths:
        shutil.rmtree(path / "eval")
    assert "No test evaluation of the runs yet. At step 1,200" in headline(compare_runs(load_runs(paths)))
    for path in paths:
        (path / "metrics.jsonl").unlink()
    assert "neither an evaluation nor a validation" in headline(compare_runs(load_runs(paths)))


def test_wrong_calls():
    with pytest.raises(ConfigError, match="at least one run"):
        compare_runs([])


def test_draws_and_repeats_are_checked(pair):
    with pytest.raises(ConfigError, match="at least 100"):
        compare_runs(pair, draws=99)
    with pytest.raises(ConfigError, match="each run once"):
        compare_runs([pair[0], pair[0]])


def test_config_differences_are_flat_and_leave_names_out(pair):
    assert config_differences(pair) == {"model.cross_attention_layers": {"demo-gpt": [], "demo-retro": [4, 6]}}


# ---------------------------------------------------------------- words


def with_relative(comparison, value, low, high):
    result = comparison.main_perplexity
    contrasts = tuple(
        dataclasses.replace(c, relative=dataclasses.replace(c.relative, value=value, low=low, high=high))
        if (c.candidate, c.reference) == (ON, GPT)
        else c
        for c in result.contrasts
    )
    return dataclasses.replace(comparison, perplexity=(dataclasses.replace(result, contrasts=contrasts),))


def test_headline_is_honest_whoever_wins(comparison):
    better = headline(with_relative(comparison, -0.04, -0.046, -0.034))
    assert "-4.0% [95% CI -4.6, -3.4]; with shuffled neighbors" in better and better.endswith("of the gain is gone.")
    worse = headline(with_relative(comparison, 0.02, 0.01, 0.03))
    assert worse.endswith("+2.0% [95% CI +1.0, +3.0]; GPT is better.")
    unclear = headline(with_relative(comparison, -0.001, -0.01, 0.008))
    assert unclear.endswith("the interval includes zero: no difference can be told.")
    blind = headline(with_relative(comparison, -0.2, None, None))
    assert blind.endswith("-20.0% (too few documents for an interval).") and "better" not in blind


def test_no_negative_zero():
    from retro.analysis.bootstrap import Estimate

    assert relative_with_interval(Estimate(-0.00001, -0.00002, 0.00001)) == "+0.0% [95% CI +0.0, +0.0]"
