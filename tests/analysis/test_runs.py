"""Reading run folders: what is tolerated, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from retro.analysis.runs import load_run, load_runs
from retro.config.errors import ArtifactCorruptError, ArtifactMissingError
from tests.analysis.builders import Shape, build_run, write_metrics

SMALL = Shape(documents=6, chunks=24, samples=2, questions=10)


def test_a_whole_run(pair):
    gpt, retro = pair
    assert (gpt.model, retro.model) == ("gpt", "retro")
    assert len(retro.metrics.train["step"]) == 120 and len(retro.metrics.validation["step"]) == 12
    assert retro.evaluations["perplexity-test"].modes == ["on", "off", "shuffled"]
    assert len(retro.evaluations["perplexity-test"].responses) == 300
    assert gpt.notes == retro.notes == ()


def test_cut_last_line_is_dropped_with_a_note(tmp_path):
    run = build_run(tmp_path / "run", "gpt", shape=SMALL)
    path = run / "metrics.jsonl"
    text = path.read_text()
    whole = load_run(run).metrics
    path.write_text(text[:-25])
    opened = load_run(run)
    assert len(opened.notes) == 1 and "killed run" in opened.notes[0] and "metrics.jsonl" in opened.notes[0]
    lines = len(whole.train["step"]) + len(whole.validation["step"])
    assert len(opened.metrics.train["step"]) + len(opened.metrics.validation["step"]) == lines - 1


def test_cut_inside_a_character_is_tolerated_too(tmp_path):
    run = build_run(tmp_path / "run", "gpt", shape=SMALL)
    with open(run / "metrics.jsonl", "ab") as file:
        file.write('{"event": "é'.encode()[:-1])
    assert "killed run" in load_run(run).notes[0]


def test_broken_line_in_the_middle_is_corrupt(tmp_path):
    run = build_run(tmp_path / "run", "gpt", shape=SMALL)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[3] = lines[3][:20]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ArtifactCorruptError, match=r"metrics.jsonl:4: expected one JSON object per line"):
        load_run(run)


def test_broken_last_line_that_was_finished_is_corrupt(tmp_path):
    run = build_run(tmp_path / "run", "gpt", shape=SMALL)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"event": "tra\n')
    with pytest.raises(ArtifactCorruptError, match="expected one JSON object"):
        load_run(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "low"}, "expected a number for 'loss'"),
        ({"loss": True}, "expected a number for 'loss'"),
        ({"step": 1}, "steps in rising order"),
    ],
)
def test_wrong_figures_are_corrupt(tmp_path, change, message):
    run = build_run(tmp_path / "run", "gpt", shape=SMALL)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[4].update(change)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ArtifactCorruptError, match=message):
        load_run(run)


def test_missing_field_is_corrupt(tmp_path):
    run = build_run(tmp_path / "run", "gpt", shape=SMALL)
    (run / "metrics.jsonl").write_text('{"event": "train", "step": 1, "loss": 2.0}\n')
    with pytest.raises(ArtifactCorruptError, match="expected the field 'tokens'"):
        load_run(run)


def test_losses_that_are_not_finite_are_gaps_with_a_note(tmp_path):
    run = build_run(tmp_path / "run", "gpt", shape=SMALL)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[4]["loss"] = None
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    opened = load_run(run)
    assert np.isnan(opened.metrics.train["loss"][4]) and "1 train losses are not finite" in opened.notes[0]


def test_events_of_other_kinds_are_ignored(tmp_path):
    run = build_run(tmp_path / "run", "gpt", shape=SMALL)
    before = len(load_run(run).metrics.train["step"])
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"event": "checkpoint", "step": 1200}\n')
    assert len(load_run(run).metrics.train["step"]) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("eval/perplexity-test/results.json", "{", "not readable as JSON"),
        ("eval/perplexity-test/results.json", "[]", "expected a JSON object"),
        ("eval/perplexity-test/results.json", "{}", "expected an object 'modes'"),
        ("eval/perplexity-test/responses.jsonl", '{"sequence": 1}\n{"sequ', "responses.jsonl:2"),
        ("eval/perplexity-test/samples.json", "{}", "expected a list of objects"),
        ("release.json", "nonsense", "release.json: not readable as JSON"),
        ("config.yaml", "a: [", "config.yaml: not readable as YAML"),
        ("config.yaml", "- a", "expected a mapping"),
    ],
)
def test_other_broken_files_are_corrupt_in_one_line(tmp_path, name, content, message):
    run = build_run(tmp_path / "run", "retro", shape=SMALL)
    (run / name).write_text(content)
    with pytest.raises(ArtifactCorruptError, match=message) as caught:
        load_run(run)
    assert "\n" not in str(caught.value)


def test_not_text_is_corrupt(tmp_path):
    run = build_run(tmp_path / "run", "gpt", shape=SMALL)
    (run / "release.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactCorruptError, match="not readable as UTF-8"):
        load_run(run)


def test_missing_and_foreign_folders(tmp_path):
    with pytest.raises(ArtifactMissingError, match="no such run folder"):
        load_run(tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    with pytest.raises(ArtifactMissingError, match="not a run folder"):
        load_run(tmp_path / "other")


def test_unfinished_evaluation_is_left_out_with_a_note(tmp_path):
    run = build_run(tmp_path / "run", "gpt", shape=SMALL)
    (run / "eval/perplexity-test/results.json").unlink()
    opened = load_run(run)
    assert "perplexity-test" not in opened.evaluations and "unfinished" in opened.notes[0]


def test_names_that_repeat_are_told_apart(tmp_path):
    for parent in ("first", "second"):
        (tmp_path / parent / "run").mkdir(parents=True)
        write_metrics(tmp_path / parent / "run" / "metrics.jsonl", "gpt", 0.0, 0)
    runs = load_runs([tmp_path / "first/run", tmp_path / "second/run"])
    assert [run.name for run in runs] == ["first/run", "second/run"]
