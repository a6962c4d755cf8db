"""Checkpoints on disk: whole or not there, refused when damaged or foreign."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from retro.artifacts.manifest import MANIFEST_NAME
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError
from retro.config.loader import from_dict
from retro.config.model import ModelConfig
from retro.config.train import TrainConfig, result_fields
from retro.model import RetroModel
from retro.optim.adamw import build_adamw
from retro.train import checkpoint
from retro.train.checkpoint import (
    Identity,
    Resumed,
    describe_differences,
    list_checkpoints,
    load_checkpoint,
    optimizer_tensors,
    save_checkpoint,
)
from retro.train.state import TrainState

CONFIG = ModelConfig(vocab_size=7, width=8, num_layers=1, num_heads=1, chunk_length=2, cross_attention_layers=(1,))
SETTINGS = {"sequence_length": 4, "num_neighbors": 2, "packing": "chunks", "steps": 9, "model": {"width": 8}}
IDENTITY = Identity(SETTINGS, "release-1", "tokenizer-1")
FILES = ("model.safetensors", "config.json", "optimizer.safetensors", "rng.safetensors", "state.json")


def make(seed: int = 0, trained: bool = True) -> tuple[RetroModel, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = RetroModel(CONFIG)
    optimizer = build_adamw(model, learning_rate=0.1, weight_decay=0.1, betas=(0.9, 0.99), eps=1e-8)
    if trained:
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return model, optimizer


def save(folder: Path, step: int, keep: int = 10, identity: Identity = IDENTITY, **parts: Any) -> Path:
    model, optimizer = make(step)
    resumed = Resumed(
        TrainState(step, step * 4, step * 100, 1.5), {"cpu": torch.get_rng_state()[None]}, {"metrics": {"x": 1 / 3}}
    )
    arguments = {"model": model, "optimizer": optimizer, "resumed": resumed, "identity": identity, "keep": keep}
    return save_checkpoint(folder, **{**arguments, **parts})


def load(path: Path, identity: Identity = IDENTITY) -> Resumed:
    model, optimizer = make(99, trained=False)
    return load_checkpoint(path, model=model, optimizer=optimizer, identity=identity)


def test_gives_back_exactly_what_was_saved(tmp_path: Path):
    path = save(tmp_path, 3)
    assert path.name == "step_000003"
    saved_model, saved_optimizer = make(3)
    model, optimizer = make(99, trained=False)
    resumed = load_checkpoint(path, model=model, optimizer=optimizer, identity=IDENTITY)
    assert resumed.state == TrainState(3, 12, 300, 1.5)
    assert resumed.callbacks == {"metrics": {"x": 1 / 3}}
    assert resumed.rng["cpu"].dtype == torch.uint8
    for name, tensor in saved_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    expected = optimizer_tensors(saved_model, saved_optimizer)
    found = optimizer_tensors(model, optimizer)
    assert expected.keys() == found.keys()
    assert len(expected) == 3 * len(list(model.parameters()))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_manifest_covers_every_file_and_nothing_is_pickled(tmp_path: Path):
    path = save(tmp_path, 1)
    manifest = json.loads((path / MANIFEST_NAME).read_text())
    assert sorted(f["name"] for f in manifest["files"]) == sorted(FILES)
    assert sorted(p.name for p in path.iterdir()) == sorted([*FILES, MANIFEST_NAME])
    for name in FILES:
        with pytest.raises((pickle.UnpicklingError, ValueError, EOFError, KeyError, IndexError)):
            pickle.loads((path / name).read_bytes())


def test_keeps_the_newest(tmp_path: Path):
    for step in (1, 2, 10, 9, 11):
        save(tmp_path, step, keep=3)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [9, 10, 11]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000009", "step_000010", "step_000011"]


def test_a_folder_without_a_manifest_is_not_a_checkpoint(tmp_path: Path):
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step_000001", tmp_path / "step_000002")
    (tmp_path / "step_000002" / MANIFEST_NAME).unlink()
    (tmp_path / "step_3x").mkdir()
    assert [step for step, _ in list_checkpoints(tmp_path)] == [1]
    assert list_checkpoints(tmp_path / "absent") == []
    save(tmp_path, 2)  # replaces the unfinished one
    load(tmp_path / "step_000002")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damage_is_refused_by_file_name(tmp_path: Path, name: str, damage: str):
    path = save(tmp_path, 1)
    file = path / name
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[-3] ^= 1
        file.write_bytes(content)
    with pytest.raises(ArtifactCorruptError, match=f"{name}.*resume from the one before"):
        load(path)


def test_an_unreadable_manifest_is_refused(tmp_path: Path):
    path = save(tmp_path, 1)
    (path / MANIFEST_NAME).write_text("{")
    with pytest.raises(ArtifactCorruptError, match=MANIFEST_NAME):
        load(path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Identity({**SETTINGS, "steps": 10}, "release-1", "tokenizer-1"), "steps: checkpoint 9, now 10"),
        (
            Identity({**SETTINGS, "model": {"width": 16}}, "release-1", "tokenizer-1"),
            "model.width: checkpoint 8, now 16",
        ),
        (Identity(SETTINGS, "release-2", "tokenizer-1"), 'release: checkpoint "release-1", now "release-2"'),
        (Identity(SETTINGS, "release-1", "tokenizer-2"), 'tokenizer: checkpoint "tokenizer-1", now "tokenizer-2"'),
        (
            Identity(SETTINGS, "release-1", "tokenizer-1", "w"),
            'weights of init_from or retrofit.base: checkpoint null, now "w"',
        ),
    ],
    ids=["field", "nested field", "release", "tokenizer", "initial weights"],
)
def test_a_foreign_checkpoint_is_refused_by_field(tmp_path: Path, other: Identity, message: str):
    path = save(tmp_path, 1)
    with pytest.raises(ArtifactMismatchError, match="another name=") as caught:
        load(path, other)
    assert message in str(caught.value)


def test_a_checkpoint_of_an_earlier_version_is_resumed(tmp_path: Path):
    """Fields that it does not have stand for what that version did, their defaults; not for anything else."""
    config = from_dict(
        TrainConfig, {**SETTINGS, "steps": 900, "name": "n", "release": "r", "model": {"width": 8, "chunk_length": 2}}
    )
    today = result_fields(config)
    earlier = {**today, "model": {k: v for k, v in today["model"].items() if k not in ("gate", "positions", "encoder")}}
    path = save(tmp_path, 2, identity=Identity(earlier, "release-1", "tokenizer-1"))
    assert load(path, Identity(today, "release-1", "tokenizer-1")).state.step == 2
    other = {**today, "model": {**today["model"], "gate": {"kind": "learned", "value": 0.0}}}
    with pytest.raises(ArtifactMismatchError, match=r'model\.gate\.kind: checkpoint "fixed", now "learned"'):
        load(path, Identity(other, "release-1", "tokenizer-1"))


def test_differences_name_fields_that_only_one_side_has():
    text = describe_differences({"config": {"a": 1, "b": {"c": 2}}}, {"config": {"b": {"c": 2, "d": None}}})
    assert text == "b.d: checkpoint absent, now null, a: checkpoint 1, now absent"
    assert describe_differences({"config": {"a": [1]}}, {"config": {"a": [1]}}) == ""


@pytest.mark.parametrize("moment", ["save_file", "write_json_atomic", "write_manifest", "replace", "rmtree"])
def test_dying_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str):
    save(tmp_path, 1, keep=1)

    class Died(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Died

    with monkeypatch.context() as patch:
        if moment == "replace":  # the rename of the finished folder, not those of the files in it
            original = os.replace
            patch.setattr(os, "replace", lambda a, b: die() if ".step_" in Path(a).name else original(a, b))
        elif moment == "rmtree":  # in the middle of the deletion of the old one
            patch.setattr(shutil, "rmtree", lambda _, ignore_errors=False: None if ignore_errors else die())
        else:
            patch.setattr(checkpoint, moment, die)
        with pytest.raises(Died):
            save(tmp_path, 2, keep=1)
    found = list_checkpoints(tmp_path)
    # Only the deletion of the old one comes after the new one is there.
    assert [step for step, _ in found] == ([2] if moment == "rmtree" else [1])
    load(found[0][1])
    save(tmp_path, 3, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000003"]


def test_optimizer_state_of_other_parameters_is_refused(tmp_path: Path):
    model, optimizer = make()
    tensors = optimizer_tensors(model, optimizer)
    name = next(iter(tensors))
    with pytest.raises(ArtifactMismatchError, match="other parameters"):
        checkpoint.fill_optimizer(tmp_path, {f"x{name}": tensors[name]}, model, optimizer)
    with pytest.raises(ArtifactMismatchError, match="expected shape"):
        wrong = {n: torch.zeros(3, 3) if t.ndim else t for n, t in tensors.items()}
        checkpoint.fill_optimizer(tmp_path, wrong, model, optimizer)
