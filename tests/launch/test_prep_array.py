"""The example of a Slurm job array: the command that a task becomes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "configs" / "launch" / "prep_array.sbatch"


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    fake = tmp_path / "retro"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "16"}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_a_task_becomes_one_rank(tmp_path):
    done = run(tmp_path, "configs/prep/jsonl.yaml", "root=my data")
    assert done.returncode == 0
    expected = ["prep", "run", "--rank", "auto", "configs/prep/jsonl.yaml", "root=my data", "workers=16"]
    assert done.stdout.splitlines() == expected


def test_without_a_configuration_it_says_how_it_is_used(tmp_path):
    done = run(tmp_path)
    assert done.returncode != 0 and "usage: sbatch" in done.stderr


def test_its_header_is_that_of_every_configuration():
    text = SCRIPT.read_text()
    assert all(f"# {part}" in text for part in ("Purpose:", "Hardware:", "Cost:", "Example:"))
    # The signal goes to the batch shell, which has become the command.
    assert "#SBATCH --signal=B:TERM@60" in text and "\nexec retro " in text
