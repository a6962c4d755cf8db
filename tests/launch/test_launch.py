"""`retro launch`: what would run, to the letter; and that it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.plan import plan_launch
from retro.config.errors import ConfigError
from retro.config.launch import LaunchConfig
from retro.config.loader import load_config

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ROOT / "configs" / "launch" / "local.yaml"

GOLDEN = {
    "one process": (
        {},
        ["retro", "train", "configs/train/a.yaml", "name=x y"],
        "OMP_NUM_THREADS=4 /opt/python -m retro.cli.train configs/train/a.yaml 'name=x y'",
    ),
    "torchrun": (
        {"processes": 2},
        ["retro", "train", "a.yaml"],
        "OMP_NUM_THREADS=2 TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300 /opt/python -m launch.agent --standalone "
        "--nproc-per-node=2 -m launch.worker retro.cli.train a.yaml",
    ),
    "environment": (
        {"processes": 8, "environment": {"NCCL_DEBUG": "WARN", "A": "b c"}},
        ["retro", "train", "a.yaml"],
        "OMP_NUM_THREADS=1 A='b c' NCCL_DEBUG=WARN TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300 /opt/python -m launch.agent "
        "--standalone --nproc-per-node=8 -m launch.worker retro.cli.train a.yaml",
    ),
    "threads": (
        {"processes": 2, "threads_per_process": 3},
        ["python", "-m", "retro.cli.train", "a.yaml"],
        "OMP_NUM_THREADS=3 TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300 /opt/python -m launch.agent --standalone "
        "--nproc-per-node=2 -m retro.cli.train a.yaml",
    ),
    "script": (
        {"processes": 2},
        ["/usr/bin/python3", "train.py", "--fast"],
        "OMP_NUM_THREADS=2 TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300 /usr/bin/python3 -m launch.agent --standalone "
        "--nproc-per-node=2 train.py --fast",
    ),
    "any program": (
        {"processes": 2},
        ["./job.sh", "a"],
        "OMP_NUM_THREADS=2 TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300 /opt/python -m launch.agent --standalone "
        "--nproc-per-node=2 --no-python ./job.sh a",
    ),
    "other sub-command": (
        {},
        ["retro", "eval", "a.yaml"],
        "OMP_NUM_THREADS=4 /opt/python -m retro.cli.eval a.yaml",
    ),
}


@pytest.mark.parametrize(("fields", "command", "line"), GOLDEN.values(), ids=GOLDEN)
def test_renders(fields: dict, command: list[str], line: str):
    plan = plan_launch(LaunchConfig(**fields), command, python="/opt/python", cores=4)
    assert plan.render() == line


@pytest.mark.parametrize(
    ("fields", "command", "message"),
    [
        ({}, [], "expected a command after --"),
        ({}, ["retro"], "expected a sub-command after retro"),
        ({"processes": 2}, ["retro", "eval", "a.yaml"], "`retro eval` runs as one process"),
        ({}, ["python", "-c", "1"], "found -c after python"),
        ({}, ["python"], "found nothing after python"),
    ],
)
def test_refuses(fields: dict, command: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        plan_launch(LaunchConfig(**fields), command, python="/opt/python", cores=4)


def test_an_unknown_type_is_refused_with_the_valid_ones():
    with pytest.raises(
        ConfigError, match="type: expected one of 'local', 'slurm', 'kubernetes', 'skypilot', found 'pbs'"
    ):
        load_config(LaunchConfig, LOCAL, ["type=pbs"])


@pytest.mark.parametrize(
    "fields",
    [{"processes": 0}, {"threads_per_process": 0}, {"environment": {"A=B": "c"}}]
    + [{"threads_per_process": 1, "environment": {"OMP_NUM_THREADS": "2"}}],
)
def test_wrong_fields_are_refused(fields: dict):
    with pytest.raises(ConfigError, match=next(iter(fields)) + "|OMP_NUM_THREADS"):
        LaunchConfig(**fields)


def test_dry_run_prints_and_runs_nothing(capsys: pytest.CaptureFixture):
    command = ["retro", "train", "absent.yaml", "--dry-run"]  # after --: the command's own
    assert main([str(LOCAL), "processes=3", "threads_per_process=1", "--dry-run", "--", *command]) == 0
    assert capsys.readouterr().out == (
        f"OMP_NUM_THREADS=1 TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300 {sys.executable} -m launch.agent --standalone "
        "--nproc-per-node=3 -m launch.worker retro.cli.train absent.yaml --dry-run\n"
    )


def launch(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "launch", str(LOCAL), "processes=1", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_becomes_the_command():
    script = 'echo "$OMP_NUM_THREADS $A"; exit 7'
    done = launch("threads_per_process=3", "environment.A=b", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (7, "3 b\n")


def test_errors_are_one_line():
    done = launch("--", "no-such-program")
    assert done.returncode == 2
    assert done.stderr == "error: launch: program 'no-such-program' not found\n"
    done = launch()
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
