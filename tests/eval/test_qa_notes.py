"""What an evaluation says about questions that the model was made with."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from retro.cli.main import main
from retro.data.qa.prepared import open_prepared
from retro.data.qa.task import TaskDefinition, task_to_dict
from retro.eval.qa_notes import evaluation_notes
from tests.data.qa.prepared_folder import write_prepared_folder
from tests.eval.qa_workspace import prepared_question

TASK = task_to_dict(TaskDefinition(name="colours"))


@pytest.fixture
def prepared(tmp_path):
    splits = {split: [prepared_question(i, split) for i in range(3)] for split in ("train", "dev", "test")}
    return open_prepared(write_prepared_folder(tmp_path / "qa", TASK, splits, release="here"))


def notes(prepared, split, trained_on, questions=None):
    questions = prepared.read(split) if questions is None else questions
    return list(evaluation_notes(prepared, split, questions, (), trained_on))


@pytest.mark.parametrize(
    ("split", "expected"), [("train", "trained on these questions"), ("dev", "may have been chosen"), ("test", None)]
)
def test_splits_that_a_model_was_made_with(prepared, split, expected):
    own = {"questions": prepared.fingerprint, "config": {"qa": {"split": "train", "validation_split": "dev"}}}
    found = notes(prepared, split, own)
    assert [expected in note for note in found] == ([True] if expected else [])
    assert notes(prepared, split, own | {"questions": "others"}) == []
    assert notes(prepared, split, own | {"questions": None, "config": {"qa": None}}) == []


def test_seen_is_of_the_release_that_the_questions_were_prepared_with(prepared):
    (note,) = notes(prepared, "test", {"release": "there"})
    assert "of the release here" in note and "trained with there" in note
    assert notes(prepared, "test", {"release": "here"}) == notes(prepared, "test", {}) == []
    unknown = [dataclasses.replace(question, seen=None) for question in prepared.read("test")]
    assert notes(prepared, "test", {"release": "there"}, unknown) == []


def test_retro_eval_says_it_of_a_run(workspace, prepared, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(workspace.gpt, run)
    (path,) = run.glob("checkpoints/*/manifest.json")
    manifest = json.loads(path.read_text())
    config = {"qa": {"split": "train", "validation_split": "dev"}}
    manifest["config"] = {"questions": prepared.fingerprint, "release": "there", "config": config}
    path.write_text(json.dumps(manifest))
    command = ["eval", f"checkpoint={run}", "task=qa", f"qa.questions={prepared.folder}", "qa.split=dev", "device=cpu"]
    assert main([*command, "qa.arms=[closed_book]", f"release={workspace.release.path}"]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2 and "may have been chosen" in notes[0] and "trained with there" in notes[1]
