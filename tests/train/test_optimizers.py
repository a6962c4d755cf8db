"""Runs with every optimizer: stopped and resumed they end with the same bits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from retro.artifacts.checkpoint_folders import list_checkpoints
from retro.artifacts.fingerprint import sha256_file
from retro.optim.build import BUILDERS
from retro.train.run import train
from tests.train import releases


@pytest.mark.parametrize("optimizer", sorted(BUILDERS))
def test_resumed_equals_undisturbed(release: Path, tmp_path: Path, optimizer: str) -> None:
    config = releases.config(release, tmp_path, optimizer=optimizer, keep_checkpoints=5, keep_best=False)
    folder = tmp_path / "run" / "checkpoints"

    def end() -> list[str]:
        step, last = list_checkpoints(folder)[-1]
        assert step == config.steps == 8
        return [sha256_file(last / f"{stem}.safetensors") for stem in ("model", "optimizer")]

    train(config)
    expected, rows = end(), releases.metrics(tmp_path / "run")
    shutil.rmtree(list_checkpoints(folder)[-1][1])
    assert [step for step, _ in list_checkpoints(folder)] == [4]
    train(config)
    assert end() == expected and releases.metrics(tmp_path / "run") == rows


def test_the_optimizer_changes_what_is_learnt(release: Path, tmp_path: Path) -> None:
    losses = {}
    for name in sorted(BUILDERS):
        train(releases.config(release, tmp_path, optimizer=name, name=name, steps=40, checkpoint_every=0))
        losses[name] = [row["loss"] for row in releases.metrics(tmp_path / name, "train")]
        assert losses[name][-1] < losses[name][0] - 1.0
    assert len({tuple(values) for values in losses.values()}) == len(BUILDERS)
