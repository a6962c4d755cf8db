"""Two processes (gloo) train what one trains."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from retro.artifacts.checkpoint_folders import list_checkpoints
from retro.train.run_folder import RunFolder
from tests.train import releases
from tests.train.ranks import Ranks


def torchrun(file: Path, *overrides: str) -> str:
    arguments = [sys.executable, "-m", "launch", "configs/launch/local.yaml", "threads_per_process=1", "--"]
    done = subprocess.run(
        [*arguments, "retro", "train", str(file), *overrides],
        capture_output=True,
        text=True,
        env=releases.environment(),
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("retro", [False, True], ids=["gpt", "retro"])
def test_two_processes_give_the_curve_of_one(release: Path, tmp_path: Path, retro: bool):
    from retro.train.run import train

    common = {"steps": 12, "log_every": 1, "checkpoint_every": 6, "validate_every": 6}
    train(releases.config(release, tmp_path, retro, name="one", **common))
    values = releases.settings(release, tmp_path, retro, name="two", micro_batch=1, **common)
    file = releases.write_yaml(tmp_path / "two.yaml", values)
    errors = torchrun(file)
    assert "2 micro-batch(es) of 1 on 2 process(es), cpu" in errors
    assert errors.count("step 12/12") == 1  # the main process speaks
    one, two = (releases.metrics(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 14
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert b[key] == (value if isinstance(value, str) else pytest.approx(value, rel=2e-4)), key
    # Resumed by one process from the checkpoint of two.
    steps = [step for step, _ in list_checkpoints(tmp_path / "two" / "checkpoints")]
    assert steps == [6, 12]
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step_000012")
    train(releases.config(release, tmp_path, retro, name="two", **common))
    for a, b in zip(one, releases.metrics(tmp_path / "two"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-4)


@pytest.mark.slow
def test_a_global_batch_that_does_not_divide_is_refused(release: Path, tmp_path: Path):
    values = releases.settings(release, tmp_path, global_batch=3, name="odd")
    file = releases.write_yaml(tmp_path / "odd.yaml", values)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "retro.cli.train"]
        + [str(file)],
        capture_output=True,
        text=True,
        env=releases.environment(),
    )
    assert done.returncode != 0
    assert "error: global_batch: expected a multiple of the number of processes 2, found 3; use 1 or 3" in done.stderr


def test_a_run_that_is_held_by_another_is_refused_by_all_processes(release: Path, tmp_path: Path):
    changes = {"validate_every": 0, "async_checkpoints": False}
    file = releases.write_yaml(tmp_path / "held.yaml", releases.settings(release, tmp_path, name="held", **changes))
    with RunFolder(releases.config(release, tmp_path, name="held", **changes)).lock():
        with Ranks(file, 2, tmp_path / "log") as ranks:
            for process in ranks.processes:  # not Ranks.wait, which kills the rest once one has failed
                process.join(60)
            assert [process.exitcode for process in ranks.processes] == [2, 2]
    said = (tmp_path / "log").read_text()
    assert said.count("another process is training this run (process ") == 1  # not once for each process
    assert "Traceback" not in said
