from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.execution.crew import Crew
from data_prep.runner import Executor, run_stage
from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactCorruptError, RetroError
from retro.config.execution import ExecutorConfig
from tests.data_prep.squares import Squares

NOTES = (".calls", ".workers", ".faults")


def content(root: Path) -> dict[str, bytes]:
    """Every byte below `root` but the notes that the test's stage takes: there is nothing that may be left over."""
    files = [p for p in root.rglob("*") if p.is_file() and p.name not in NOTES]
    assert not [p for p in root.rglob("*") if p.is_dir() and p.name.startswith(".")]
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def calls(folder: Path) -> list[int]:
    return [int(line) for line in (folder / ".calls").read_text().split()]


@pytest.fixture
def clean(tmp_path: Path) -> dict[str, bytes]:
    """The artifact as one undisturbed process makes it."""
    return content(run_stage(Squares(), tmp_path / "clean", progress=False))


def test_one_and_two_workers_give_the_same_bytes(tmp_path, clean):
    assert content(run_stage(Squares(), tmp_path / "two", Executor(2), progress=False)) == clean
    manifest = open_manifest(run_stage(Squares(), tmp_path / "two", progress=False), "numbers")
    assert manifest.stats == {"sum": 55} and manifest.rows == 6


def test_a_finished_stage_is_not_run_again(tmp_path):
    folder = run_stage(Squares(), tmp_path, progress=False)
    assert calls(folder) == [0, 1, 2, 3, 4, 5]
    run_stage(Squares(), tmp_path, progress=False)
    assert calls(folder) == [0, 1, 2, 3, 4, 5]
    other = run_stage(Squares(count=5), tmp_path, progress=False)
    assert other != folder and folder.is_dir()


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_at_any_moment_then_resume_equals_the_clean_run(tmp_path, clean, workers):
    command = [sys.executable, "-m", "tests.data_prep.squares", str(tmp_path / "killed"), str(workers), "0.12"]
    for moment in (0.35, 0.55, 0.8):
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        time.sleep(moment)
        process.kill()
        process.wait()
    folder = run_stage(Squares(), tmp_path / "killed", progress=False)
    assert content(folder) == clean


def test_resume_keeps_committed_shards_and_makes_damaged_ones_again(tmp_path):
    folder = tmp_path / Squares().folder_name()
    with pytest.raises(ArtifactCorruptError, match=r"squares, shard 00004: input line 7: not JSON$"):
        run_stage(Squares(poison=4), tmp_path, progress=False)
    assert calls(folder) == [0, 1, 2, 3]
    (folder / "square-00003.txt").write_text("truncated")
    run_stage(Squares(), tmp_path, progress=False)
    assert calls(folder) == [0, 1, 2, 3, 3, 4, 5]
    assert (folder / "square-00003.txt").read_text() == "9"


def test_a_shard_whose_worker_dies_is_given_to_another(tmp_path, clean, capsys):
    folder = run_stage(Squares(poison=2, fault="kill", times=2), tmp_path, Executor(2))
    assert content(folder) == clean
    assert sorted(calls(folder)) == [0, 1, 2, 3, 4, 5]
    lines = [line for line in capsys.readouterr().err.splitlines() if "attempt" in line]
    assert [line.split(":")[1].strip() for line in lines[:2]] == [
        "shard 00002, attempt 1 of 3",
        "shard 00002, attempt 2 of 3",
    ]
    assert "killed by signal 9 (SIGKILL)" in lines[0]


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("exit", r"its worker process ended with exit code 9"),
        ("kill", r"its worker process was killed by signal 9 \(SIGKILL\)"),
        ("raise", r"ValueError: not what was thought of"),
    ],
)
def test_a_poisonous_shard_fails_the_stage_by_name_after_some_attempts(tmp_path, clean, fault, cause):
    executor = Executor(2, ExecutorConfig(attempts=2))
    with pytest.raises(RetroError, match=rf"^squares, shard 00005 \(2 attempts\): {cause}") as caught:
        run_stage(Squares(poison=5, fault=fault), tmp_path, executor, progress=False)
    assert "\n" not in str(caught.value)
    folder = tmp_path / Squares().folder_name()
    assert (folder / ".faults").read_text() == "xx"
    assert content(run_stage(Squares(), tmp_path, progress=False)) == clean


@pytest.mark.parametrize("workers", [1, 2])
def test_content_and_full_disks_are_not_tried_twice(tmp_path, clean, workers):
    folder = tmp_path / Squares().folder_name()
    with pytest.raises(ArtifactCorruptError, match="squares, shard 00001: input line 7"):
        run_stage(Squares(poison=1), tmp_path, Executor(workers), progress=False)
    assert (folder / ".faults").read_text() == "x"
    reason = os.strerror(errno.ENOSPC)
    with pytest.raises(RetroError, match=rf"^squares, shard 00001: {reason}: square.txt; free the cause"):
        run_stage(Squares(poison=1, fault="disk"), tmp_path, Executor(workers), progress=False)
    assert (folder / ".faults").read_text() == "xx"
    assert content(run_stage(Squares(), tmp_path, progress=False)) == clean


def test_an_unexpected_exception_leaves_its_traceback_until_the_stage_is_finished(tmp_path, clean):
    with pytest.raises(
        RetroError, match=r"shard 00002 \(3 attempts\): ValueError: .*; details in (.*)failed-00002.txt"
    ):
        run_stage(Squares(poison=2, fault="raise"), tmp_path, progress=False)
    folder = tmp_path / Squares().folder_name()
    assert "in _fail" in (folder / ".work" / "failed-00002.txt").read_text()
    assert content(run_stage(Squares(), tmp_path, progress=False)) == clean


def test_a_damaged_finished_artifact_is_refused_not_rebuilt(tmp_path):
    folder = run_stage(Squares(), tmp_path, progress=False)
    (folder / "sum.txt").write_text("5")
    with pytest.raises(ArtifactCorruptError, match=r"sum\.txt: expected 2 bytes, found 1"):
        run_stage(Squares(), tmp_path, progress=False)
    assert (folder / "sum.txt").read_text() == "5"


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_workers_end_with_a_killed_parent(tmp_path):
    command = [sys.executable, "-m", "tests.data_prep.squares", str(tmp_path), "2", "30"]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("*/.work/tmp-*/square-*"))) < 2:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.exists():
            pytest.skip("this system does not list the children of a process")
        workers = [int(pid) for pid in children.read_text().split()]
        workers = [pid for pid in workers if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(workers) == 2
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    while any(running(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_gpus_are_dealt_round(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
    folder = run_stage(Squares(count=8, wait=0.3, gpus=2), tmp_path, Executor(2), progress=False)
    seen = dict(line.split() for line in (folder / ".workers").read_text().splitlines())
    assert sorted(seen.values()) == ["GPU-a,GPU-b", "GPU-c,GPU-a"]


def workers_of(folder: Path) -> set[str]:
    return {line.split()[0] for line in (folder / ".workers").read_text().splitlines()}


def test_a_crew_goes_from_stage_to_stage(tmp_path, clean):
    """The same processes make the second stage; one that was killed in between is replaced, no shard is blamed."""
    with Crew() as crew:
        executor = Executor(2, crew=crew)
        first = workers_of(run_stage(Squares(count=8, wait=0.2), tmp_path, executor, progress=False))
        second = workers_of(run_stage(Squares(count=7, wait=0.2), tmp_path, executor, progress=False))
        assert len(first) == 2 and second == first
        os.kill(int(min(first)), signal.SIGKILL)
        folder = run_stage(Squares(wait=0.2), tmp_path, executor, progress=False)
        assert content(folder) == clean
        assert len(workers_of(folder) & first) == 1
        running_now = workers_of(folder) - {min(first)}
    assert not [pid for pid in running_now if running(int(pid))]


def test_workers_with_gpus_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with Crew() as crew:
        executor = Executor(2, crew=crew)
        folder = run_stage(Squares(wait=0.2, gpus=1), tmp_path, executor, progress=False)
        assert not [pid for pid in workers_of(folder) if running(int(pid))]
