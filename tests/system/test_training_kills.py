"""Two processes are killed at random moments, over and over: the run ends bit for bit as if nothing had happened.

benchmarks/kills.py does a hundred of them, through torchrun's agent too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retro.artifacts.checkpoint_folders import list_checkpoints
from tests.train import releases
from tests.train.kills import Forked, kill_until_finished, result
from tests.train.ranks import run_ranks

pytestmark = pytest.mark.slow
KILLS = 6


@pytest.mark.parametrize(("strategy", "background"), [("ddp", True), ("ddp", False), ("fsdp", True)])
def test_killed_at_random(tmp_path: Path, strategy: str, background: bool):
    (tmp_path / "release").mkdir()
    release = releases.build_release(tmp_path / "release")
    files = {}
    for name in ("undisturbed", "killed"):
        fields = {"steps": 150, "log_every": 1, "checkpoint_every": 4, "validate_every": 24}
        values = releases.settings(release, tmp_path, name=name, async_checkpoints=background, **fields)
        values["model"]["dropout"] = 0.1
        values["parallel"] = {"strategy": strategy}
        files[name] = releases.write_yaml(tmp_path / f"{name}.yaml", values)
    log = tmp_path / "log.txt"
    assert run_ranks(files["undisturbed"], 2, log) == [0, 0], log.read_text()
    life = Forked(files["killed"], 2, log)
    generator = np.random.default_rng(0)
    try:
        kills = kill_until_finished(
            life, tmp_path / "killed", generator, start_up=1.0, window=1.0, most=KILLS, timeout=150
        )
    finally:
        life.kill_all()
    assert kills, "finished before the first kill"
    sums, rows = result(tmp_path / "killed")
    assert (sums, rows) == result(tmp_path / "undisturbed")
    assert any(line.startswith("rng.safetensors") for line in sums)
    assert any(line.startswith("optimizer") for line in sums)
    assert list_checkpoints(tmp_path / "killed" / "checkpoints")[-1][0] == 150
    assert not [path for path in (tmp_path / "killed").rglob("*") if ".tmp-" in path.name]
