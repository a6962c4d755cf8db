"""Checkpoints on disk: whole or not there, refused when damaged or foreign."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from retro.artifacts.checkpoint_folders import list_checkpoints
from retro.artifacts.manifest import MANIFEST_NAME, describe_file
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError
from retro.config.loader import from_dict
from retro.config.model import ModelConfig
from retro.config.train import TrainConfig, result_fields
from retro.model import RetroModel
from retro.model.tensor_bytes import write_tensors
from retro.model.tensor_header import DTYPES
from retro.optim.adamw import build_adamw
from retro.train.checkpointing import save as saving
from retro.train.checkpointing.folders import point_best
from retro.train.checkpointing.identity import Identity, describe_differences
from retro.train.checkpointing.load import load_checkpoint, read_state
from retro.train.checkpointing.peers import CheckpointError
from retro.train.checkpointing.save import Resumed, Retention, save_checkpoint, take_snapshot, write_snapshot
from retro.train.checkpointing.staging import Staging
from retro.train.parallel.state import named_optimizer_state
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


def save_best(folder: Path, step: int, best: int | None) -> None:
    """The newest one and the best one are kept."""
    model, optimizer = make(step)
    resumed = Resumed(TrainState(step), {"cpu": torch.get_rng_state()[None]}, {})
    write_snapshot(folder, take_snapshot(model, optimizer, resumed), IDENTITY, Retention(1, best))


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
    expected = named_optimizer_state(saved_model, saved_optimizer)
    found = named_optimizer_state(model, optimizer)
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


@pytest.mark.parametrize("moment", ["write_tensors", "write_json_atomic", "write_manifest", "replace", "rmtree"])
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
            patch.setattr(shutil, "rmtree", die)
        else:
            patch.setattr(saving, moment, die)
        with pytest.raises(Died):
            save(tmp_path, 2, keep=1)
    found = list_checkpoints(tmp_path)
    # Only the deletion of the old one comes after the new one is there.
    assert [step for step, _ in found] == ([2] if moment == "rmtree" else [1])
    load(found[0][1])
    save(tmp_path, 3, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000003"]


def test_optimizer_state_of_other_parameters_is_refused(tmp_path: Path):
    path = save(tmp_path, 1)
    file = path / "optimizer.safetensors"
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    for altered, message in (
        ({f"x{n}" if n == name else n: t for n, t in tensors.items()}, f"other parameters.*{name}"),
        ({n: torch.zeros(3, 3) if n == name else t for n, t in tensors.items()}, r"expected shape .*found \[3, 3\]"),
    ):
        save_file(altered, file)
        manifest = json.loads((path / MANIFEST_NAME).read_text())
        manifest["files"] = [describe_file(path / entry["name"]) for entry in manifest["files"]]
        (path / MANIFEST_NAME).write_text(json.dumps(manifest))
        with pytest.raises(ArtifactMismatchError, match=message):
            load(path)


def test_before_the_first_step_there_is_no_optimizer_state(tmp_path: Path):
    """A rollback may go back to the start: the optimizer is then as if it had never stepped."""
    model, optimizer = make(3, trained=False)
    path = save(tmp_path, 0, model=model, optimizer=optimizer)
    assert load_file(path / "optimizer.safetensors") == {}
    later, stepped = make(5)
    load_checkpoint(path, model=later, optimizer=stepped, identity=IDENTITY)
    assert not stepped.state
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), later.parameters(), strict=True))


def test_the_files_are_those_of_safetensors_itself(tmp_path: Path):
    """Older versions of this project read them, and resumed runs hash the same."""
    path = save(tmp_path / "new", 2)
    model, optimizer = make(2)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "model", metadata={"format": "pt"})
    save_file(named_optimizer_state(model, optimizer), tmp_path / "optimizer")
    for name in ("model", "optimizer"):
        assert (path / f"{name}.safetensors").read_bytes() == (tmp_path / name).read_bytes()


def test_any_dtype_and_shape_is_written_as_safetensors_writes_it(tmp_path: Path):
    tensors = {
        f"{name}{number}": (torch.rand(3, number + 1) * 9).to(dtype)
        for number, dtype in enumerate(DTYPES.values())
        for name in ("b", "a.\u00fc", 'q"\\', "n\n")
    }
    tensors |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(3.0), "strided": torch.rand(4, 6)[:, ::2]}
    record = write_tensors(tmp_path / "ours", tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert record == describe_file(tmp_path / "ours")
    with pytest.raises(TypeError, match=r"c: tensors of torch\.complex64"):
        write_tensors(tmp_path / "complex", {"c": torch.zeros(1, dtype=torch.complex64)})


def test_the_best_one_is_kept_and_linked(tmp_path: Path):
    def names() -> list[str]:
        return sorted(path.name for path in tmp_path.iterdir())

    for step, best in ((1, None), (2, 2), (3, 2), (4, None)):
        save_best(tmp_path, step, best)
    assert names() == ["best", "step_000002", "step_000004"]
    assert (tmp_path / "best").resolve() == tmp_path / "step_000002"
    assert load(tmp_path / "best").state.step == 2
    save_best(tmp_path, 5, 5)
    save_best(tmp_path, 6, 5)
    assert names() == ["best", "step_000005", "step_000006"]
    assert [step for step, _ in list_checkpoints(tmp_path)] == [5, 6]


def test_a_link_to_a_best_one_that_is_gone_is_removed(tmp_path: Path):
    save_best(tmp_path, 1, 1)
    shutil.rmtree(tmp_path / "step_000001")
    point_best(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_copy_of_a_run_may_have_followed_the_link(tmp_path: Path):
    save_best(tmp_path / "run", 1, 1)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert not (tmp_path / "copy" / "best").is_symlink()
    save_best(tmp_path / "copy", 2, 1)
    assert (tmp_path / "copy" / "best").resolve() == tmp_path / "copy" / "step_000001"
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["best", "step_000001", "step_000002"]


def test_a_best_link_with_an_absolute_path_keeps_its_checkpoint(tmp_path: Path):
    save_best(tmp_path, 1, 1)
    (tmp_path / "best").unlink()
    (tmp_path / "best").symlink_to(tmp_path / "step_000001")
    for step in (2, 3, 4):
        save(tmp_path, step, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "step_000001", "step_000004"]


def test_an_old_checkpoint_that_was_moved_and_linked_is_unlinked(tmp_path: Path):
    save(tmp_path / "run", 1, keep=1)
    shutil.move(tmp_path / "run" / "step_000001", tmp_path / "elsewhere")
    (tmp_path / "run" / "step_000001").symlink_to(tmp_path / "elsewhere")
    save(tmp_path / "run", 2, keep=1)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step_000002"]
    assert (tmp_path / "elsewhere" / "manifest.json").is_file()


def test_an_old_checkpoint_that_cannot_be_deleted_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A network file system keeps the folder of a file that an evaluation still reads."""
    save(tmp_path, 1, keep=1)
    rmdir = os.rmdir

    def busy(path: str, **options: Any) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)

    monkeypatch.setattr(os, "rmdir", busy)
    save(tmp_path, 2, keep=1)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [2]
    monkeypatch.setattr(os, "rmdir", rmdir)
    save(tmp_path, 3, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000003"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path):
    save(tmp_path / "run", 1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "optimizer.safetensors"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "write_tensors", full)
        with pytest.raises(CheckpointError) as caught:
            save(tmp_path / "run", 2)
    assert str(caught.value) == (
        f"{tmp_path / 'run'}: the checkpoint of step 2 could not be written: No space left on device "
        "(optimizer.safetensors); make room or let the run write there, and start the run again, it resumes from its "
        "newest checkpoint"
    )
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step_000001"]  # nothing half written takes room


def test_a_copy_is_not_changed_by_training(tmp_path: Path):
    model, optimizer = make(4)
    resumed = Resumed(TrainState(7), {"cpu": torch.get_rng_state()[None]}, {})
    staging = Staging()
    take_snapshot(model, optimizer, resumed, staging=staging)  # buffers of an earlier one are used again
    snapshot = take_snapshot(model, optimizer, resumed, staging=staging)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected_state = {name: tensor.clone() for name, tensor in named_optimizer_state(model, optimizer).items()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    path = write_snapshot(tmp_path, snapshot, IDENTITY, Retention(1))
    found = load_file(path / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    found = load_file(path / "optimizer.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected_state.items())
    # No third copy however many are made.
    assert len(staging._buffers) == len(expected) + len(expected_state)


@pytest.mark.parametrize("state", ['{"state": {"step": "four"}, "callbacks": {}}', "[" * 100_000], ids=["text", "deep"])
def test_a_forged_state_is_one_line(tmp_path: Path, state: str):
    path = save(tmp_path / "new", 2)
    (path / "state.json").write_text(state)
    with pytest.raises(ArtifactCorruptError, match=r"state\.json: not readable \(.*\); move that checkpoint away"):
        read_state(path / "state.json")
