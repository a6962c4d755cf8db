"""Checkpoints of whole runs: behind training, the best one, and two processes killed and resumed."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from retro.artifacts.checkpoint_folders import list_checkpoints
from retro.config.loader import from_dict
from retro.config.train import TrainConfig
from retro.inference.checkpoint import open_checkpoint
from retro.model.tensor_files import open_tensor_files
from retro.train.checkpointing import save as saving
from retro.train.checkpointing.peers import CheckpointError
from retro.train.run import train
from tests.train import releases
from tests.train.ranks import Death, run_ranks

STEPS = 30


def settings(release: Path, root: Path, name: str, strategy: str) -> dict:
    values = releases.settings(
        release,
        root,
        name=name,
        steps=STEPS,
        log_every=1,
        checkpoint_every=3,
        validate_every=5,
        parallel={"strategy": strategy},
        async_checkpoints=True,
    )
    values["model"]["dropout"] = 0.1  # the generators matter
    return values


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    sets = {stem: open_tensor_files(folder, stem) for stem in ("model", "optimizer")}
    return {f"{stem}/{name}": files.read(name) for stem, files in sets.items() for name in files.names}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_killed_and_resumed_ends_with_the_same_bits(release: Path, tmp_path: Path, strategy: str):
    clean = releases.write_yaml(tmp_path / "clean.yaml", settings(release, tmp_path, "clean", strategy))
    killed = releases.write_yaml(tmp_path / "killed.yaml", settings(release, tmp_path, "killed", strategy))
    log = tmp_path / "log.txt"
    assert run_ranks(clean, 2, log) == [0, 0], log.read_text()
    run = tmp_path / "killed"
    # Soon after a save has begun behind training, and just before one; either process.
    for death in (Death(1, 7), Death(0, 14), Death(1, 20)):
        assert run_ranks(killed, 2, log, death=death)[death.rank] == -signal.SIGKILL
        assert 0 < list_checkpoints(run / "checkpoints")[-1][0] <= death.step
    assert run_ranks(killed, 2, log) == [0, 0], log.read_text()
    assert "resuming at step" in (run / "log.txt").read_text()
    found, expected = (tensors(root / "checkpoints" / f"step_{STEPS:06d}") for root in (run, tmp_path / "clean"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    losses, clean_losses = ([row["loss"] for row in releases.metrics(root)] for root in (run, tmp_path / "clean"))
    assert losses == clean_losses
    best = [json.loads((root / "checkpoints/best/state.json").read_text()) for root in (run, tmp_path / "clean")]
    assert best[0]["callbacks"]["checkpointer"] == best[1]["callbacks"]["checkpointer"]
    assert not [path for path in run.rglob("*") if ".tmp-" in path.name]
    if strategy == "fsdp":  # one process goes on with what two have written
        shutil.rmtree(list_checkpoints(run / "checkpoints")[-1][1])
        alone = {**settings(release, tmp_path, "killed", strategy), "parallel": {}}
        train(from_dict(TrainConfig, alone))
        assert [row["loss"] for row in releases.metrics(run)] == pytest.approx(clean_losses, rel=1e-2)


def test_a_save_behind_training_that_fails_ends_the_run_with_its_line(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = releases.config(release, tmp_path, steps=12, checkpoint_every=2, validate_every=0, keep_checkpoints=9)
    train(dataclasses.replace(config, name="clean"))
    original, broken = saving.write_tensors, True

    def full(path: Path, *rest: Any) -> Any:
        if broken and "step_000006" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return original(path, *rest)

    monkeypatch.setattr(saving, "write_tensors", full)
    with pytest.raises(CheckpointError, match=r"step 6 could not be written: No space left .*; make room .*it resumes"):
        train(config)
    steps = [step for step, _ in list_checkpoints(tmp_path / "run" / "checkpoints")]
    assert steps == [2, 4]
    broken = False
    train(config)
    found, expected = (tensors(tmp_path / name / "checkpoints" / "step_000012") for name in ("run", "clean"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob(".*")] == []


def test_the_best_validation_is_kept_and_serves_wherever_a_checkpoint_does(release: Path, tmp_path: Path):
    # The rate rises until the model gets worse again.
    values = {"steps": 24, "checkpoint_every": 6, "validate_every": 2, "keep_checkpoints": 1}
    values |= {"warmup_steps": 24, "learning_rate": 1.0}
    outcome = train(releases.config(release, tmp_path, **values))
    folder = outcome.folder / "checkpoints"
    losses = {row["step"]: row["loss"] for row in releases.metrics(outcome.folder, "validation")}
    best = min(losses, key=lambda step: losses[step])
    assert best < 24  # otherwise this test shows nothing
    assert sorted(path.name for path in folder.iterdir()) == ["best", f"step_{best:06d}", "step_000024"]
    assert os.readlink(folder / "best") == f"step_{best:06d}"
    stored = json.loads((folder / "step_000024" / "state.json").read_text())
    assert stored["callbacks"]["checkpointer"] == {"best_loss": losses[best], "best_step": best}
    assert open_checkpoint(folder / "best").load_model().config.is_retro
    again = releases.settings(release, tmp_path, name="again", init_from=str(folder / "best"), steps=2)
    del again["model"]
    assert train(from_dict(TrainConfig, again)).state.step == 2


@pytest.mark.parametrize("changes", [{"keep_best": False}, {"checkpoint_every": 0}], ids=["off", "last only"])
def test_no_checkpoint_is_written_for_the_best_unless_asked(release: Path, tmp_path: Path, changes: dict):
    values = {"steps": 6, "checkpoint_every": 3, "validate_every": 2, "keep_checkpoints": 9, **changes}
    folder = train(releases.config(release, tmp_path, **values)).folder / "checkpoints"
    steps = [step for step, _ in list_checkpoints(folder)]
    assert steps == ([3, 6] if "keep_best" in changes else [6])


def test_blocking_and_asynchronous_checkpoints_are_the_same(release: Path, tmp_path: Path):
    for name, behind in (("blocking", False), ("behind", True)):
        values = {"steps": 8, "checkpoint_every": 3, "keep_checkpoints": 9, "async_checkpoints": behind}
        train(releases.config(release, tmp_path, name=name, **values))
    for step in (3, 6, 8):
        for file in ("model.safetensors", "optimizer.safetensors", "rng.safetensors"):
            one, two = (tmp_path / n / "checkpoints" / f"step_{step:06d}" / file for n in ("blocking", "behind"))
            assert one.read_bytes() == two.read_bytes()
