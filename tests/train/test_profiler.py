"""The profiler: the steps that were asked for, in files that can be opened, without an effect on the run."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from retro.artifacts.fingerprint import sha256_file
from retro.config.errors import ConfigError
from retro.train.run import train
from tests.train import releases
from tests.train.poison import Poison


def steps_of(folder: Path, stem: str) -> int:
    with gzip.open(folder / f"{stem}.trace.json.gz") as stream:
        events = json.load(stream)["traceEvents"]
    # Some versions of torch record the last one twice.
    return len({e["name"] for e in events if str(e.get("name", "")).startswith("ProfilerStep#")})


@pytest.mark.parametrize(
    "profile", [{"start": 1, "steps": 1}, {"start": 3, "steps": 2, "memory": True, "stacks": True}]
)
def test_records_the_steps_and_changes_nothing(release: Path, tmp_path: Path, profile: dict[str, Any]):
    runs = [train(releases.config(release, tmp_path, name="plain")).folder]
    runs += [train(releases.config(release, tmp_path, name="profiled", profile=profile)).folder]
    last = profile["start"] + profile["steps"] - 1
    stem = f"steps_{profile['start']:06d}-{last:06d}_rank_00000"
    folder = runs[1] / "profile"
    assert sorted(path.name for path in folder.iterdir()) == [f"{stem}.operators.txt", f"{stem}.trace.json.gz"]
    table = (folder / f"{stem}.operators.txt").read_text()
    assert "aten::mm" in table and "Self CPU" in table
    assert ("CPU Mem" in table) == profile.get("memory", False)
    assert steps_of(folder, stem) == profile["steps"]
    hashes = {sha256_file(run / "checkpoints" / "step_000008" / "model.safetensors") for run in runs}
    assert len(hashes) == 1
    assert releases.metrics(runs[0]) == releases.metrics(runs[1])
    assert f"profile of steps {profile['start']} to {last}: " in (runs[1] / "log.txt").read_text()


def test_steps_that_the_run_does_not_have_are_refused(release: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"profile: steps 7 to 9 lie outside the run's 8 steps; lower profile\.start"):
        train(releases.config(release, tmp_path, profile={"start": 7, "steps": 3}))


def test_a_resumed_run_says_that_they_are_behind(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        Poison((24,)).install(patch.setattr)
        with pytest.raises(Exception, match="step 7: loss nan"):
            train(releases.config(release, tmp_path))
    run = train(releases.config(release, tmp_path, profile={"start": 2, "steps": 2})).folder
    assert "profile: steps 2 to 3 are behind step 4, where the run resumes; nothing" in (run / "log.txt").read_text()
    assert not (run / "profile").exists()


def test_a_rollback_begins_the_recording_again(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Poison((24,)).install(monkeypatch.setattr)
    run = train(releases.config(release, tmp_path, on_nonfinite="rollback", profile={"start": 6, "steps": 2})).folder
    folder = run / "profile"
    assert steps_of(folder, "steps_000006-000007_rank_00000") == 2
    assert len(list(folder.iterdir())) == 2
