"""Random kills of a run's processes, over and over until the run is finished, and what each of them struck."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from retro.artifacts.checkpoint_folders import list_checkpoints
from retro.artifacts.fingerprint import sha256_file
from tests.train import releases
from tests.train.ranks import Ranks

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Kill:
    """who: one rank, or all (under an agent: and it); where: in the start-up, a step, or while a checkpoint was being
    written; step: last one that metrics.jsonl told of; lost: steps that had to be made again, 0 in the start-up."""

    who: Literal["one", "all"]
    where: Literal["start-up", "step", "saving"]
    step: int
    lost: int


class Life(Protocol):
    """Processes of a run between two kills."""

    def is_over(self) -> bool:
        """Whether the run is finished. Raises AssertionError if it ended by itself in any other way."""

    def kill_one(self, generator: np.random.Generator) -> None:
        """kill -9 of one rank, and what follows of it for the others."""

    def kill_all(self) -> None:
        """kill -9 of everything."""

    def go_on(self) -> None:
        """Whatever starts the processes again does so."""


class Forked:
    """Ranks that are started again by this loop (tests/train/ranks.py)."""

    def __init__(self, file: Path, world: int, log: Path) -> None:
        self.file, self.world, self.log = file, world, log
        self.ranks = Ranks(file, world, log)

    def is_over(self) -> bool:
        codes = [process.exitcode for process in self.ranks.processes]
        if any(code not in (None, 0) for code in codes):
            self.ranks.kill()
            raise AssertionError(f"ended by itself: {codes}\n{self.log.read_text()[-4000:]}")
        return all(code == 0 for code in codes)

    def kill_one(self, generator: np.random.Generator) -> None:
        self.ranks.kill(int(generator.integers(self.world)))
        # What is left does what it can without the other, until the agent's watch would see it.
        time.sleep(float(generator.uniform(0, 0.3)))
        self.ranks.kill()

    def kill_all(self) -> None:
        self.ranks.kill()

    def go_on(self) -> None:
        self.ranks = Ranks(self.file, self.world, self.log)


class Agent:
    """Ranks under torchrun's elastic agent, by `retro launch`: it starts them again when one has died."""

    def __init__(self, file: Path, world: int, log: Path) -> None:
        self.file, self.world, self.log = file, world, log
        self.go_on()

    def go_on(self) -> None:
        """The agent goes on by itself unless it was killed too."""
        if hasattr(self, "process") and self.process.poll() is None:
            return
        command = [sys.executable, "-m", "launch", str(ROOT / "configs/launch/local.yaml"), f"processes={self.world}"]
        command += ["threads_per_process=1", "max_restarts=1000", "--", "retro", "train", str(self.file)]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, env=releases.environment(), start_new_session=True
            )

    def is_over(self) -> bool:
        code = self.process.poll()
        assert code in (None, 0), f"ended by itself: {code}\n{self.log.read_text()[-4000:]}"
        return code == 0

    def _workers(self) -> list[int]:
        found = []
        for path in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            found += [int(number) for number in path.read_text().split()]
        return sorted(found)

    def kill_one(self, generator: np.random.Generator) -> None:
        workers = self._workers()
        if workers:
            _kill(workers[int(generator.integers(len(workers)))])

    def kill_all(self) -> None:
        workers = self._workers()
        self.process.kill()
        for pid in workers:
            _kill(pid)
        self.process.wait()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def kill_until_finished(
    life: Life,
    folder: Path,
    generator: np.random.Generator,
    *,
    start_up: float,
    window: float,
    most: int,
    timeout: float = 600.0,
) -> list[Kill]:
    """Kill at random moments until the run in `folder` is finished, `most` times at most.

    start_up: seconds until the first step; a life ends after 0 to start_up + window seconds, where nothing was reached
    for five lives after twice that, and so on. Raises AssertionError if the run ends by itself in any other way, and
    after the timeout.
    """
    kills: list[Kill] = []
    deadline, longest, barren = time.monotonic() + timeout, start_up + window, 0
    while True:
        sessions, begun = _sessions(folder), _newest(folder)
        ends = time.monotonic() + float(generator.uniform(0, longest))
        if len(kills) == most:
            ends = deadline
        while not (over := life.is_over()) and time.monotonic() < ends:
            time.sleep(0.002)
        if over:
            return kills
        assert time.monotonic() < deadline, f"not finished after {timeout:.0f} s, step {_last_step(folder)}"
        who: Literal["one", "all"] = "one" if generator.random() < 0.5 else "all"
        saving = _is_saving(folder)
        if who == "one":
            life.kill_one(generator)
        else:
            life.kill_all()
        saving = saving and _is_saving(folder)
        trained = _sessions(folder) > sessions and _last_step(folder) > begun
        where: Literal["start-up", "step", "saving"] = ("saving" if saving else "step") if trained else "start-up"
        lost = _last_step(folder) - _newest(folder) if trained else 0
        kills.append(Kill(who, where, _last_step(folder), max(0, lost)))
        barren = 0 if _newest(folder) > begun else barren + 1
        if barren == 5:
            barren, longest = 0, longest * 2
        life.go_on()


def result(folder: Path) -> tuple[list[str], list[dict[str, object]]]:
    """(checksums of the tensors of the last checkpoint by file, metrics without the clock): what must be equal."""
    _, last = list_checkpoints(folder / "checkpoints")[-1]
    sums = [f"{path.name} {sha256_file(path)}" for path in sorted(last.glob("*.safetensors"))]
    return sums, releases.metrics(folder)


def _sessions(folder: Path) -> int:
    """Sessions of the run that came as far as its first log line."""
    path = folder / "log.txt"
    return len(re.findall(r": (?:training|resuming at step \d+): ", path.read_text())) if path.is_file() else 0


def _last_step(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    steps = re.findall(r'"step": (\d+),', path.read_text()) if path.is_file() else []
    return int(steps[-1]) if steps else 0


def _newest(folder: Path) -> int:
    """Step of the newest whole checkpoint."""
    found = list_checkpoints(folder / "checkpoints")
    return found[-1][0] if found else 0


def _is_saving(folder: Path) -> bool:
    return any((folder / "checkpoints").glob(".step_*.tmp-*"))
