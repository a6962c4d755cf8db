"""Exit codes come through torchrun, and through a worker; signals reach who must stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.plan import plan_launch
from retro.config.launch import LaunchConfig
from retro.config.launch_parts import ResourceConfig
from tests.system.workplace import ROOT

PROGRAM = """
import os, signal, sys, time
rank, folder, what = int(os.environ.get("RANK", "0")), sys.argv[1], sys.argv[2]
stopped = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda *_: stopped.append(1))
if what == "wait":
    open(f"{folder}/ready-{rank}", "w").close()
    while not stopped: time.sleep(0.01)
    sys.exit(75)
if what == "text": sys.exit("a last word")
open(f"{folder}/runs-{rank}", "a").write("x")
sys.exit(int(what) if rank == 0 else 0)
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def environment(module: Path, **extra: str) -> dict[str, str]:
    path = f"{module}:{ROOT}"
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "60", **extra}


def worker(module: Path, what: str, **extra: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "launch.worker", "program", str(module), what]
    return subprocess.run(arguments, env=environment(module, **extra), capture_output=True, text=True)


@pytest.mark.parametrize(("code", "seen", "written"), [(0, 0, None), (75, 0, "75"), (2, 2, "2"), (7, 7, "7")])
def test_a_worker_writes_its_code(module: Path, code: int, seen: int, written: str | None):
    file = module / "exit"
    file.write_text("75")  # of an earlier attempt
    assert worker(module, str(code), RETRO_EXIT_FILE=str(file)).returncode == seen
    assert (file.read_text().strip() if file.exists() else None) == written


def test_a_worker_that_nobody_asked_keeps_its_code(module: Path):
    assert worker(module, "75").returncode == 75
    done = worker(module, "text")
    assert (done.returncode, done.stderr) == (1, "a last word\n")


def test_only_the_first_process_of_a_machine_writes(module: Path):
    file = module / "exit"
    assert worker(module, "75", RETRO_EXIT_FILE=str(file), LOCAL_RANK="1", RANK="0").returncode == 0
    assert not file.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_a_worker_stops_when_whatever_started_it_is_killed(module: Path):
    """Agents put workers into sessions of their own: they would train on, and the run could not be started again."""
    file = module / "exit"
    command = [sys.executable, "-m", "launch.worker", "program", str(module), "wait"]
    starter = (
        f"import subprocess, sys; p = subprocess.Popen({command!r}, start_new_session=True); print(p.pid); "
        "sys.stdout.flush(); p.wait()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", starter],
        env=environment(module, RETRO_EXIT_FILE=str(file)),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    try:
        while not (module / "ready-0").exists():
            time.sleep(0.01)
        parent.kill()
        deadline = time.monotonic() + 30
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert file.read_text().strip() == "75"  # it was asked to stop, and did so by itself
    finally:
        parent.communicate()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def agent(module: Path, what: str, restarts: int = 0) -> list[str]:
    options = ["--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}"]
    return [sys.executable, "-m", "launch.agent", *options, "-m", "launch.worker", "program", str(module), what]


@pytest.mark.slow
@pytest.mark.parametrize(("code", "seen", "runs"), [(0, 0, 1), (75, 75, 1), (3, 3, 3)])
def test_an_agent_ends_with_the_code_of_its_workers(module: Path, code: int, seen: int, runs: int):
    """And a run that stopped for a time limit is not started again, as one that failed is."""
    done = subprocess.run(agent(module, str(code), 2), env=environment(module), capture_output=True, text=True)
    assert done.returncode == seen, done.stderr
    assert (module / "runs-0").read_text() == "x" * runs


@pytest.mark.slow
def test_accelerate_starts_all_processes_and_its_code_is_honest_too(module: Path):
    """`accelerate launch --cpu` would start one, without a word."""
    config = LaunchConfig(processes=2, starter="accelerate", resources=ResourceConfig(gpus=2))
    plan = plan_launch(config, ["python", "-m", "program", str(module), "0"], python=sys.executable, cores=2)
    done = subprocess.run(plan.arguments, env=environment(module), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (module / "runs-0").exists() and (module / "runs-1").exists()
    arguments = [*plan.arguments[:-4], "-m", "launch.worker", "program", str(module), "75"]
    assert subprocess.run(arguments, env=environment(module)).returncode == 75


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("given", [False, True], ids=["own file", "given file"])
def test_a_signal_to_the_agent_stops_the_workers(module: Path, number: signal.Signals, given: bool):
    extra = {"RETRO_EXIT_FILE": str(module / "exit")} if given else {}
    process = subprocess.Popen(agent(module, "wait", 2), env=environment(module, **extra), stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not all((module / f"ready-{rank}").exists() for rank in (0, 1)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(60) == (0 if given else 75)
    finally:
        process.kill()
    assert not given or (module / "exit").read_text().strip() == "75"
