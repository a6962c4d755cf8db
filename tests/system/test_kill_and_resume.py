"""`kill -9` of training and evaluation at any moment, then the same command again: the same bytes as without the kill.

Preparation: test_prep_kills.py."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from retro.cli.main import main
from tests.system.workplace import (
    copy,
    differences,
    environment,
    eval_command,
    result_files,
    train_command,
)


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    """`retro` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "retro.cli.main", *arguments],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the command and everything it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def kill_when(arguments: list[str], ready: Callable[[], bool], delay: float = 0.0) -> bool:
    """Start the command and kill it `delay` seconds after `ready()`; False if it had ended by itself before."""
    process = start(arguments)
    deadline = time.monotonic() + 120
    try:
        while not ready():
            if process.poll() is not None:
                assert process.returncode == 0, process.communicate()[1].decode()
                return False
            assert time.monotonic() < deadline, "the awaited moment did not come"
            time.sleep(0.001)
        time.sleep(delay)
        return process.poll() is None
    finally:
        kill_group(process)


def leftovers(root: Path) -> list[str]:
    """Temporary files and folders that a finished command should have cleared."""
    return [str(p.relative_to(root)) for p in root.rglob("*") if ".tmp-" in p.name]


DYING = """
import os, signal, sys
from retro.cli.main import main
left, when = int(sys.argv[1]), sys.argv[2]
def dying(call):
    def wrapped(*arguments, **options):
        global left
        left -= 1
        if left == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        value = call(*arguments, **options)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return value
    return wrapped
os.replace, os.fsync = dying(os.replace), dying(os.fsync)
raise SystemExit(main(sys.argv[3:]))
"""


def die_at_call(command: list[str], count: int, when: str) -> bool:
    """Run the command in a process that dies, as by kill -9, before or after its n-th os.replace or os.fsync.

    Those two calls are what a commit consists of: this visits the moments that a timer hits too rarely. False if the
    command ended by itself before.
    """
    done = subprocess.run(
        [sys.executable, "-c", DYING, str(count), when, *command], env=environment(), capture_output=True, check=False
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode != 0


def step_reached(run: Path, step: int) -> bool:
    try:
        return f'"step": {step},' in (run / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return False


def check_run(clean: Path, other: Path, name: str) -> None:
    """Equal results: weights, optimizer, generator states, metrics; the paths in config.yaml are another root's."""
    before, after = result_files(clean, ["config.yaml", "release.json"]), result_files(other, ["config.yaml"])
    before = {n: b for n, b in before.items() if not n.startswith("eval/")}
    after = {n: b for n, b in after.items() if n != "release.json"}
    assert differences(before, after) == []
    assert (clean / f"checkpoints/{name}/model.safetensors").read_bytes() == (
        other / f"checkpoints/{name}/model.safetensors"
    ).read_bytes()
    assert leftovers(other) == []


def kill_training(place, tmp_path: Path, kind: str, moments: list[tuple[int, float]]) -> None:
    command = train_command(kind, place.release, tmp_path)
    run = tmp_path / kind
    for step, delay in moments:
        kill_when(command, lambda step=step: step_reached(run, step), delay)
    assert main(command) == 0
    check_run(place.runs / kind, run, "step_000030")


def test_training_killed_twice_and_resumed(place, tmp_path):
    kill_training(place, tmp_path, "retro", [(3, 0.0), (24, 0.01)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt", "retro"])
@pytest.mark.parametrize("seed", [0, 1])
def test_training_killed_at_random_steps_and_resumed(place, tmp_path, kind, seed):
    generator = np.random.default_rng(seed)
    steps = sorted(int(s) for s in generator.integers(1, 30, 5))
    kill_training(place, tmp_path, kind, [(step, float(generator.uniform(0, 0.1))) for step in steps])


def test_training_killed_between_any_two_system_calls_of_a_checkpoint(place, tmp_path):
    command = train_command("retro", place.release, tmp_path)
    for count, when in ((30, "after"), (18, "before"), (14, "after")):
        assert die_at_call(command, count, when)
    assert main(command) == 0
    check_run(place.retro, tmp_path / "retro", "step_000030")


EVAL_OPTIONS = ["batch=2", "block_batches=1", "samples=3"]


@pytest.fixture
def clean_evaluation(place, tmp_path) -> dict[str, bytes]:
    """Results of an evaluation in small blocks that nothing disturbs."""
    output = tmp_path / "clean"
    assert main(eval_command("perplexity", place.retro, f"output={output}", *EVAL_OPTIONS)) == 0
    return result_files(output / "eval" / "perplexity-test")


def test_evaluation_killed_between_any_two_system_calls_of_a_block(place, tmp_path, clean_evaluation):
    output = tmp_path / "out"
    command = eval_command("perplexity", place.retro, f"output={output}", *EVAL_OPTIONS)
    folder = output / "eval" / "perplexity-test"
    behind = 0
    for count in (12, 13, 14):  # the calls of one block, one after the other
        assert die_at_call(command, count, "after")
        committed = json.loads((folder / "state.json").read_text())["bytes"]
        behind += (folder / "responses.jsonl").stat().st_size > committed
    assert behind >= 1  # bytes of a block that was not committed
    assert main(command) == 0
    assert differences(clean_evaluation, result_files(folder)) == []
    assert leftovers(output) == []


@pytest.mark.slow
def test_evaluation_killed_often_and_resumed(place, tmp_path, clean_evaluation):
    output = tmp_path / "out"
    command = eval_command("perplexity", place.retro, f"output={output}", *EVAL_OPTIONS)
    folder = output / "eval" / "perplexity-test"

    def committed() -> int:
        try:
            return int(json.loads((folder / "state.json").read_text())["blocks"])
        except (FileNotFoundError, ValueError):
            return 0

    killed = sum(kill_when(command, lambda block=block: committed() >= block) for block in (1, 5, 9, 14, 18, 21))
    assert killed >= 1
    assert main(command) == 0
    assert differences(clean_evaluation, result_files(folder)) == []
    assert leftovers(output) == []


def test_a_killed_evaluation_is_not_reported(place, tmp_path, capsys):
    """responses.jsonl without results.json: the report says that it is left out."""
    run = copy(place.retro, tmp_path / "retro")
    (run / "eval" / "perplexity-test" / "results.json").unlink()
    page = tmp_path / "r.html"
    assert main(["report", str(place.gpt), str(run), "-o", str(page), "--draws", "100"]) == 0
    assert "unfinished" in capsys.readouterr().out + page.read_text()
