"""`kill -9` at every operation of a save: the checkpoint before is whole, this one is whole or not there."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.device_mesh import DeviceMesh

from retro.artifacts.checkpoint_folders import list_checkpoints
from retro.config.errors import RetroError
from retro.train.checkpointing.background import BackgroundSave
from retro.train.checkpointing.folders import point_best, remove_leftovers
from retro.train.checkpointing.load import load_checkpoint
from retro.train.checkpointing.save import Retention, take_snapshot, write_snapshot
from retro.train.checkpointing.staging import Staging
from tests.train import spread
from tests.train.dying import Deaths
from tests.train.spread import IDENTITY, check_state, keep_state, make, open_group, stored_state, whole_state
from tests.train.worlds import run_world


def save(
    rank: int, folder: Path, seed: int, spread_out: bool, asynchronous: bool, victim: int, die_at: int, best: int
) -> int | str:
    """The checkpoint of step `seed` and deletion of the ones before; how many operations on files that took, or the
    error's line."""
    peers = open_group()
    model, optimizer = make(
        seed, DeviceMesh("cpu", list(range(peers.world))) if spread_out else None, config=spread.SMALLEST
    )
    keep_state(folder.parent / f"expected-{seed}", whole_state(model, optimizer), peers.is_main)
    staging = Staging() if asynchronous else None
    snapshot = take_snapshot(model, optimizer, spread.resumed(seed, peers.world), peers, staging)
    deaths = Deaths(die_at if rank == victim else 0)
    deaths.arm()
    try:
        if asynchronous:
            BackgroundSave(lambda: write_snapshot(folder, snapshot, IDENTITY, Retention(1, best), peers)).wait()
        else:
            write_snapshot(folder, snapshot, IDENTITY, Retention(1, best), peers)
    except RetroError as error:
        return str(error)
    return deaths.count


def check_whole(path: Path, seed: int, expected: Path) -> None:
    model, optimizer = make(99, config=spread.SMALLEST)
    found = load_checkpoint(path, model=model, optimizer=optimizer, identity=IDENTITY)
    assert found.state.step == seed
    check_state(whole_state(model, optimizer), stored_state(expected / f"expected-{seed}"))


def check_after_death(folder: Path, template: Path) -> int:
    """What a kill has left, and what the next run makes of it; the newest step."""
    newest, path = list_checkpoints(folder)[-1]
    check_whole(path, newest, folder.parent if newest == 2 else template.parent)
    for step, older in list_checkpoints(folder)[:-1]:
        assert step == 1
        check_whole(older, 1, template.parent)  # listed, so not half deleted
    remove_leftovers(folder)
    point_best(folder, newest)
    assert {entry.name for entry in folder.iterdir()} <= {"best", "step_000001", "step_000002"}
    check_whole(folder / "best", newest, folder.parent if newest == 2 else template.parent)
    return newest


def kill_everywhere(tmp_path: Path, world: int, asynchronous: bool, first: int, every: int) -> None:
    template = tmp_path / "template" / "checkpoints"
    template.parent.mkdir()
    spread_out = world > 1
    run_world(world, save, tmp_path, template, 1, spread_out, False, 0, 0, 1)
    check_whole(template / "best", 1, template.parent)
    for victim in range(world):
        folder = tmp_path / f"whole-{victim}" / "checkpoints"
        shutil.copytree(template, folder, symlinks=True)
        operations = run_world(world, save, tmp_path, folder, 2, spread_out, asynchronous, victim, 0, 2)[victim]
        assert operations > (20 if victim == 0 else 3)
        newest = set()
        for die_at in range(first, operations + 1, every):
            folder = tmp_path / f"{victim}-{die_at}" / "checkpoints"
            shutil.copytree(template, folder, symlinks=True)
            results = run_world(world, save, tmp_path, folder, 2, spread_out, asynchronous, victim, die_at, 2)
            assert results[victim] == -signal.SIGKILL
            newest.add(check_after_death(folder, template))
            for rank, result in enumerate(results):
                # The others know, and do not wait; or the work was done and only the main process went on to delete.
                assert rank == victim or "is gone or did not answer" in result
        assert newest == ({1, 2} if victim == 0 else {1})


def test_killed_at_some_operations_of_a_save_behind_training(tmp_path: Path):
    kill_everywhere(tmp_path, 1, True, first=1, every=17)


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True], ids=["blocking", "asynchronous"])
@pytest.mark.parametrize("world", [1, 2])
def test_killed_at_every_operation_of_a_save(tmp_path: Path, world: int, asynchronous: bool):
    # Of two processes every second one: the even ones in one case, the odd ones in the other.
    kill_everywhere(tmp_path, world, asynchronous, first=1 + (world > 1 and asynchronous), every=world)


def test_everything_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A power cut keeps what was flushed only: every file, and the folder that lists them, before it is renamed."""
    flushed: set[int] = set()
    missing: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note(descriptor: int) -> None:
        fsync(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    def check(source: Any, target: Any) -> None:
        if Path(target).name == "step_000002":
            missing.extend(str(p) for p in [Path(source), *Path(source).iterdir()] if p.stat().st_ino not in flushed)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", check)
    save_here(tmp_path, 2)
    assert missing == []
    assert tmp_path.stat().st_ino in flushed  # and the name itself
    flushed.clear()
    monkeypatch.setattr("retro.model.tensor_bytes.os.fsync", fsync)
    save_here(tmp_path, 2)
    assert missing != []  # the test would see it


def save_here(folder: Path, seed: int) -> None:
    model, optimizer = make(seed, config=spread.SMALLEST)
    write_snapshot(folder, take_snapshot(model, optimizer, spread.resumed(seed)), IDENTITY, Retention(1))
