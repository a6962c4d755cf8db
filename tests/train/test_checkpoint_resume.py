"""Runs of two processes with checkpoints behind training: killed and resumed, they end where undisturbed ones do."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from retro.config.loader import from_dict
from retro.config.train import TrainConfig
from retro.model.tensor_files import open_tensor_files
from retro.train.checkpoint import list_checkpoints
from retro.train.run import train
from tests.train import releases

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


def start(file: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.Popen(
        [*command, "-m", "retro.cli.train", str(file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=releases.environment(),
        start_new_session=True,
    )


def end(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    return errors


def kill_after(process: subprocess.Popen[str], metrics: Path, step: int) -> None:
    """SIGKILL to all processes once the log tells of `step`."""
    try:
        deadline = time.monotonic() + 120
        while f'"step": {step},' not in (metrics.read_text() if metrics.is_file() else ""):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
            time.sleep(0.005)
    finally:
        # The agent gives its workers sessions of their own, so its group is not all.
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for number in [process.pid, *map(int, children)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.communicate()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    sets = {stem: open_tensor_files(folder, stem) for stem in ("model", "optimizer")}
    return {f"{stem}/{name}": files.read(name) for stem, files in sets.items() for name in files.names}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the workers of torchrun are found in /proc")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_killed_and_resumed_ends_with_the_same_bits(release: Path, tmp_path: Path, strategy: str):
    clean = releases.write_yaml(tmp_path / "clean.yaml", settings(release, tmp_path, "clean", strategy))
    killed = releases.write_yaml(tmp_path / "killed.yaml", settings(release, tmp_path, "killed", strategy))
    end(start(clean))
    run = tmp_path / "killed"
    for step in (8, 19):
        kill_after(start(killed), run / "metrics.jsonl", step)
        assert 0 < list_checkpoints(run / "checkpoints")[-1][0] <= step + 1
    assert "resuming at step" in end(start(killed))
    found, expected = (tensors(root / "checkpoints" / f"step_{STEPS:06d}") for root in (run, tmp_path / "clean"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert releases.metrics(run) == releases.metrics(tmp_path / "clean")
    best = [json.loads((root / "checkpoints/best/state.json").read_text()) for root in (run, tmp_path / "clean")]
    assert best[0]["callbacks"]["checkpointer"] == best[1]["callbacks"]["checkpointer"]
    assert not [path for path in run.rglob("*") if ".tmp-" in path.name]
    if strategy == "fsdp":  # one process goes on with what two have written
        shutil.rmtree(list_checkpoints(run / "checkpoints")[-1][1])
        alone = {**settings(release, tmp_path, "killed", strategy), "parallel": {}}
        train(from_dict(TrainConfig, alone))
        losses = [row["loss"] for row in releases.metrics(run, "train")]
        assert losses == pytest.approx([r["loss"] for r in releases.metrics(tmp_path / "clean", "train")], rel=1e-2)
