"""Models by a path: runs, checkpoints, saved folders, Hugging Face folders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from retro.artifacts.manifest import Manifest, describe_file, write_manifest
from retro.config.errors import ArtifactCorruptError, ArtifactMissingError, ArtifactUnfinishedError, ConfigError
from retro.model import RetroModel
from retro.model.huggingface import save_huggingface
from retro.model.pretrained import load_pretrained, open_pretrained, save_pretrained
from retro.model.weights import save_model
from tests.model.builders import TINY, scrambled, tiny
from tests.model.pieces import split_file


def equal(a: RetroModel, b: RetroModel) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return a.config == b.config and all(torch.equal(left[name], right[name]) for name in left)


def make_run(folder: Path, *steps: int) -> dict[int, RetroModel]:
    """A run folder with a checkpoint of another model at each step."""
    models = {}
    for step in steps:
        models[step] = scrambled(TINY, seed=step, dtype=torch.float32)
        path = folder / "checkpoints" / f"step_{step:06d}"
        save_model(path, models[step])
        files = [describe_file(path / name) for name in ("model.safetensors", "config.json")]
        write_manifest(path, Manifest("checkpoint", "train", 1, "0" * 16, {}, {}, [], files, {}))
    return models


def test_a_saved_model(tmp_path: Path) -> None:
    model = scrambled(TINY, dtype=torch.float32)
    save_pretrained(model, tmp_path / "a" / "model", {"note": "x"})
    assert equal(load_pretrained(tmp_path / "a" / "model"), model)
    assert not load_pretrained(str(tmp_path / "a" / "model")).training
    assert json.loads((tmp_path / "a" / "model" / "config.json").read_text())["note"] == "x"
    with pytest.raises(ConfigError, match="exists already"):
        save_pretrained(model, tmp_path / "a" / "model")


def test_a_run_and_its_checkpoints(tmp_path: Path) -> None:
    models = make_run(tmp_path, 5, 40, 300)
    (tmp_path / "checkpoints" / "step_000900").mkdir()  # unfinished
    assert equal(load_pretrained(tmp_path), models[300])
    assert equal(load_pretrained(tmp_path / "checkpoints" / "step_000040"), models[40])


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    model = scrambled(tiny(cross_attention_layers=()), dtype=torch.float32)
    save_huggingface(model, tmp_path / "out")
    loaded = load_pretrained(tmp_path / "out")
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError, match="no such run, checkpoint or model"):
        load_pretrained(tmp_path / "nowhere")
    with pytest.raises(ArtifactMissingError, match=r"config\.json: not found"):
        load_pretrained(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ArtifactMissingError, match="no finished checkpoint"):
        load_pretrained(tmp_path)


def test_a_checkpoint_with_other_bytes_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path, 1)
    path = tmp_path / "checkpoints" / "step_000001" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactCorruptError, match=r"model\.safetensors: expected sha256"):
        load_pretrained(tmp_path)


def record_again(folder: Path) -> None:
    """A manifest of the files that are there."""
    files = [describe_file(path) for path in sorted(folder.iterdir()) if path.name != "manifest.json"]
    write_manifest(folder, Manifest("checkpoint", "train", 1, "0" * 16, {}, {}, [], files, {}))


def test_weights_in_pieces(tmp_path: Path) -> None:
    model = make_run(tmp_path, 1)[1]
    folder = tmp_path / "checkpoints" / "step_000001"
    fingerprint = open_pretrained(tmp_path).fingerprint()
    split_file(folder, "model", 3)
    record_again(folder)
    assert equal(load_pretrained(tmp_path), model)
    assert open_pretrained(tmp_path).fingerprint() == fingerprint
    filled = scrambled(TINY, seed=9, dtype=torch.float32)
    open_pretrained(folder).fill(filled)
    assert equal(filled, model)
    for name in ("model-00002.safetensors", "model.index.json", "config.json"):
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the same size
        with pytest.raises(ArtifactCorruptError, match=rf"{name}: (expected sha256|not readable as JSON)"):
            load_pretrained(folder)
        path.write_bytes(content)
    manifest = folder / "manifest.json"
    recorded = json.loads(manifest.read_text())
    recorded["files"] = [file for file in recorded["files"] if file["name"] != "model-00001.safetensors"]
    manifest.write_text(json.dumps(recorded))
    with pytest.raises(
        ArtifactCorruptError, match=r"model-00001\.safetensors: expected sha256 in the manifest, found no"
    ):
        load_pretrained(folder)


def test_weights_in_pieces_that_are_not_finite(tmp_path: Path) -> None:
    model = make_run(tmp_path, 1)[1]
    folder = tmp_path / "checkpoints" / "step_000001"
    with torch.no_grad():
        model.norm.weight[-1] = float("inf")
    save_model(folder, model)
    split_file(folder, "model", 2)
    record_again(folder)
    with pytest.raises(ArtifactCorruptError, match=r"step_000001: norm\.weight holds numbers that are not finite; use"):
        load_pretrained(folder)


def test_the_best_checkpoint(tmp_path: Path) -> None:
    models = make_run(tmp_path, 5, 40)
    best = tmp_path / "checkpoints" / "best"
    best.symlink_to("step_000005")
    assert equal(load_pretrained(best), models[5]) and equal(load_pretrained(tmp_path), models[40])
    found = open_pretrained(best)
    assert found.folder == tmp_path / "checkpoints" / "step_000005"
    best.unlink()
    best.symlink_to("step_000040")  # a better one: what was found stays what it was
    found.check()
    assert equal(load_pretrained(found.folder), models[5])
    best.unlink()
    best.symlink_to("step_000999")
    with pytest.raises(ArtifactMissingError, match="best: no such run, checkpoint or model"):
        load_pretrained(best)


def test_a_checkpoint_without_its_manifest_is_unfinished(tmp_path: Path) -> None:
    make_run(tmp_path, 1)
    folder = tmp_path / "checkpoints" / "step_000001"
    (folder / "manifest.json").unlink()
    (folder / "optimizer.safetensors").touch()
    with pytest.raises(ArtifactUnfinishedError, match=r"no manifest\.json"):
        load_pretrained(folder)


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    plain = tiny(cross_attention_layers=())
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_huggingface(scrambled(plain, seed=seed), tmp_path / name)
        save_huggingface(scrambled(plain, seed=seed), tmp_path / f"{name}-shards", shard_bytes=2000)
    one, same, other, shards, same_shards, other_shards = (
        open_pretrained(tmp_path / name).fingerprint() for name in ("a", "b", "c", "a-shards", "b-shards", "c-shards")
    )
    assert one == same != other
    assert shards == same_shards != other_shards


def test_models_are_read_without_transformers() -> None:
    code = (
        "import sys\nfor name in ('transformers', 'tokenizers', 'sentencepiece'): sys.modules[name] = None\n"
        "import retro.model.pretrained, retro.model.retrofit, retro.model.huggingface\n"
        "assert not [m for m in sys.modules if m.startswith(('retro.train', 'retro.data', 'retro.inference'))]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
