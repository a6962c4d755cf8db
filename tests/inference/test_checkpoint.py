"""Opening run folders and checkpoints for inference."""

import dataclasses
import json
import shutil

import pytest
import torch

from retro.artifacts.manifest import describe_file, open_manifest, write_manifest
from retro.cli.main import main
from retro.config.errors import (
    ArtifactCorruptError,
    ArtifactMismatchError,
    ArtifactMissingError,
    ArtifactUnfinishedError,
    ConfigError,
)
from retro.inference.checkpoint import open_checkpoint
from retro.inference.opening import open_language_model
from tests.eval.workspace import NEIGHBORS, SEQUENCE, write_run
from tests.model.pieces import split_file


@pytest.fixture
def run(workspace, tmp_path):
    return write_run(tmp_path / "run", workspace.release, retro=True, step=5)


def test_the_newest_finished_checkpoint_of_a_run(workspace, run):
    steps = run / "checkpoints"
    for step in (40, 9):
        shutil.copytree(steps / "step_000005", steps / f"step_{step:06d}")
    shutil.copytree(steps / "step_000005", steps / "step_000050")
    (steps / "step_000050" / "manifest.json").unlink()  # a kill while saving
    opened = open_checkpoint(run)
    assert opened.step == 40 and opened.run == run and opened.name == "run step 40"
    assert opened.setting("sequence_length", None) == SEQUENCE and opened.setting("num_neighbors", 7) == 7
    assert opened.setting("num_neighbors", None) == NEIGHBORS
    one = open_checkpoint(steps / "step_000009")
    assert one.step == 9 and one.run == run and one.fingerprint == opened.fingerprint
    assert one.release_path(None) == run / "release.json"


def test_a_checkpoint_alone(run, tmp_path):
    alone = tmp_path / "somewhere"
    shutil.copytree(run / "checkpoints" / "step_000005", alone)
    opened = open_checkpoint(alone)
    assert opened.run is None and opened.settings == {}
    with pytest.raises(ConfigError, match="num_neighbors=NUMBER"):
        opened.setting("num_neighbors", None)
    with pytest.raises(ConfigError, match="release=PATH"):
        opened.release_path(None)


def test_what_cannot_be_opened(run, tmp_path):
    with pytest.raises(ArtifactMissingError, match="no such run"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ArtifactMissingError, match="neither a run folder"):
        open_checkpoint(tmp_path)
    folder = run / "checkpoints" / "step_000005"
    (folder / "config.json").write_text("[]")
    with pytest.raises(ArtifactCorruptError, match=r"config\.json"):
        open_checkpoint(run)
    (folder / "manifest.json").unlink()
    with pytest.raises(ArtifactUnfinishedError, match="no finished checkpoint"):
        open_checkpoint(run)
    with pytest.raises(ArtifactUnfinishedError, match="unfinished"):
        open_checkpoint(folder)
    shutil.rmtree(folder)
    with pytest.raises(ArtifactMissingError, match="no finished checkpoint"):
        open_checkpoint(run)


def test_truncated_weights_are_refused(run):
    weights = run / "checkpoints" / "step_000005" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ArtifactCorruptError, match=r"model\.safetensors"):
        open_checkpoint(run)


def test_weights_in_pieces(run, workspace, tmp_path):
    own = open_checkpoint(run)
    expected = own.load_model().state_dict()
    pieces = write_run(tmp_path / "pieces", workspace.release, retro=True, step=5)
    folder = pieces / "checkpoints" / "step_000005"
    split_file(folder, "model", 3)
    manifest = open_manifest(run / "checkpoints" / "step_000005")
    files = [describe_file(path) for path in sorted(folder.iterdir()) if path.name != "manifest.json"]
    write_manifest(folder, dataclasses.replace(manifest, files=files))
    opened = open_checkpoint(pieces)
    assert opened.fingerprint == own.fingerprint
    found = opened.load_model().state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    path = folder / "model-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtifactCorruptError, match=r"model-00001\.safetensors: expected sha256"):
        open_checkpoint(pieces).load_model()
    path.unlink()
    with pytest.raises(ArtifactCorruptError, match=r"model-00001\.safetensors: recorded in the manifest but missing"):
        open_checkpoint(pieces)
    write_manifest(folder, dataclasses.replace(manifest, files=[describe_file(folder / "config.json")]))
    with pytest.raises(ArtifactCorruptError, match=r"a record of model\.safetensors or model\.index\.json, found none"):
        open_checkpoint(pieces)


def test_the_best_checkpoint(run, tmp_path):
    steps = run / "checkpoints"
    shutil.copytree(steps / "step_000005", steps / "step_000040")
    (steps / "best").symlink_to("step_000005")
    opened = open_checkpoint(steps / "best")
    assert (opened.step, opened.run, opened.name) == (5, run, "run step 5")
    (tmp_path / "link").symlink_to(steps / "step_000040")
    opened = open_checkpoint(tmp_path / "link")
    assert (opened.step, opened.run) == (40, run) and opened.release_path(None) == run / "release.json"


def test_another_tokenizer_is_refused(run):
    path = run / "checkpoints" / "step_000005" / "config.json"
    stored = json.loads(path.read_text())
    other = "0" * len(stored["tokenizer"])
    path.write_text(json.dumps(stored, indent=1, sort_keys=True).replace(stored["tokenizer"], other) + "\n")
    with pytest.raises(ArtifactMismatchError, match="expected the tokenizer 0000"):
        open_language_model(run)


def test_an_exported_model(run, workspace, tmp_path):
    assert main(["export", f"checkpoint={run}", f"output={tmp_path / 'whole'}", "format=retro"]) == 0
    opened, own = open_checkpoint(tmp_path / "whole"), open_checkpoint(run)
    assert opened.run is None and opened.fingerprint == own.fingerprint
    assert opened.stored == own.stored
    weights = own.load_model().state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in opened.load_model().state_dict().items())


def test_an_averaged_model_is_evaluated(workspace, tmp_path, capsys):
    for name, seed in (("a", 1), ("b", 2)):
        write_run(tmp_path / name, workspace.release, retro=True, seed=seed)
    mean = tmp_path / "mean"
    assert main(["checkpoint", "average", f"checkpoints=[{tmp_path}/a,{tmp_path}/b]", f"output={mean}"]) == 0
    assert open_checkpoint(mean).stored["average"][1]["run"] == "b"
    command = ["eval", "task=perplexity", f"checkpoint={mean}", f"release={tmp_path / 'a' / 'release.json'}"]
    sizes = [f"sequence_length={SEQUENCE}", f"num_neighbors={NEIGHBORS}", "max_sequences=2", "modes=[on]"]
    assert main([*command, *sizes, f"output={tmp_path}", "device=cpu"]) == 0
    assert "bits per byte" in capsys.readouterr().out


def test_a_hugging_face_folder_is_told(run, tmp_path):
    alone = tmp_path / "theirs"
    alone.mkdir()
    shutil.copy(run / "checkpoints" / "step_000005" / "model.safetensors", alone)
    (alone / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ArtifactMismatchError, match=r"found a Hugging Face folder; .*retrofit\.base"):
        open_checkpoint(alone)
