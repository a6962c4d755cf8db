from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.runner import Executor, run_stage
from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactCorruptError, RetroError
from tests.data_prep.squares import Squares


def content(root: Path) -> dict[str, bytes]:
    """Every output byte below `root`; locks and the test's own call log are not output."""
    files = [p for p in root.rglob("*") if p.is_file() and p.name != ".calls" and not p.name.endswith(".lock")]
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def test_one_and_two_workers_give_the_same_bytes(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        run_stage(Squares(), tmp_path / name, Executor(workers), progress=False)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    manifest = open_manifest(run_stage(Squares(), tmp_path / "one", progress=False), "numbers")
    assert manifest.stats == {"sum": 55} and manifest.rows == 6


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    folder = run_stage(Squares(), tmp_path, progress=False)
    assert len((folder / ".calls").read_text().split()) == 6
    run_stage(Squares(), tmp_path, progress=False)
    assert len((folder / ".calls").read_text().split()) == 6
    other = run_stage(Squares(count=5), tmp_path, progress=False)
    assert other != folder and folder.is_dir()


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_at_any_moment_then_resume_equals_the_clean_run(tmp_path: Path, workers: int) -> None:
    clean = content(run_stage(Squares(), tmp_path / "clean", progress=False))
    command = [sys.executable, "-m", "tests.data_prep.squares", str(tmp_path / "killed"), str(workers), "0.12"]
    for moment in (0.35, 0.55, 0.8):
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        time.sleep(moment)
        process.kill()
        process.wait()
    time.sleep(0.8)  # orphaned workers end by themselves
    folder = run_stage(Squares(), tmp_path / "killed", progress=False)
    assert content(folder) == clean
    assert not [p for p in folder.iterdir() if p.name.startswith(".tmp")]


def test_resume_keeps_committed_shards_and_makes_damaged_ones_again(tmp_path: Path) -> None:
    folder = tmp_path / Squares().folder_name()
    with pytest.raises(ArtifactCorruptError, match="squares, shard 00004: input line 7: not JSON"):
        run_stage(Squares(poison=4), tmp_path, progress=False)
    assert (folder / ".calls").read_text().split() == ["0", "1", "2", "3"]
    (folder / "square-00003.txt").write_text("truncated")
    run_stage(Squares(), tmp_path, progress=False)
    assert (folder / ".calls").read_text().split() == ["0", "1", "2", "3", "3", "4", "5"]
    assert (folder / "square-00003.txt").read_text() == "9"


def test_a_worker_that_dies_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    with pytest.raises(RetroError, match="squares: a worker process died"):
        run_stage(Squares(poison=-6), tmp_path, Executor(2), progress=False)
    folder = run_stage(Squares(), tmp_path, progress=False)
    assert content(folder) == content(run_stage(Squares(), tmp_path / "clean", progress=False))


def test_a_damaged_finished_artifact_is_refused_not_rebuilt(tmp_path: Path) -> None:
    folder = run_stage(Squares(), tmp_path, progress=False)
    (folder / "sum.txt").write_text("5")
    with pytest.raises(ArtifactCorruptError, match=r"sum\.txt: expected 2 bytes, found 1"):
        run_stage(Squares(), tmp_path, progress=False)
    assert (folder / "sum.txt").read_text() == "5"
