"""The processes of a run, started in milliseconds: forked from one that has imported everything, each a real rank.

They join through the variables of torchrun, run `retro train`, and can be killed one by one. Each can write down which
sequences it trains on (its micro-batches as they reach the model), and die before a given one.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.train.ranks", "retro.cli.train", "retro.train.run", "accelerate"])


@dataclass(frozen=True)
class Death:
    """Rank `rank` kills itself (SIGKILL) before its micro-batch number `micro_batch` of the step after `step`."""

    rank: int
    step: int
    micro_batch: int = 0


class Ranks:
    """Running processes of one session of a run; a context, at whose end none is left.

    file: the run's configuration; log: their output is appended there; record: folder in which each rank notes its
    micro-batches.
    """

    def __init__(
        self, file: Path, world: int, log: Path, *, record: Path | None = None, death: Death | None = None
    ) -> None:
        port = free_port()
        session = 0
        if record is not None:
            record.mkdir(parents=True, exist_ok=True)
            session = len({path.stem.split("-")[0] for path in record.glob("*.jsonl")})
        notes = [None if record is None else record / f"{session:03d}-{rank}.jsonl" for rank in range(world)]
        self.processes = [
            _CONTEXT.Process(target=_be_rank, args=(file, rank, world, port, log, notes[rank], death))
            for rank in range(world)
        ]
        for process in self.processes:
            process.start()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def wait(self, timeout: float = 120.0) -> list[int]:
        """Exit codes by rank, negative for signals. As an agent does, the rest is killed once one has failed."""
        deadline = time.monotonic() + timeout
        while True:
            codes = [process.exitcode for process in self.processes]
            if all(code is not None for code in codes):
                return [int(code) for code in codes if code is not None]
            if any(codes):
                self.kill()
                continue
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"ranks did not end within {timeout:.0f} s")
            waiting = [p.sentinel for p in self.processes if p.exitcode is None]
            multiprocessing.connection.wait(waiting, timeout=1.0)

    def kill(self, rank: int | None = None) -> None:
        """kill -9 of one or all."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            process.kill()
        if rank is None:
            for process in self.processes:
                process.join()


def run_ranks(file: Path, world: int, log: Path, **options: Any) -> list[int]:
    """One session of the run to its end: exit codes by rank."""
    with Ranks(file, world, log, **options) as ranks:
        return ranks.wait()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def consumed(record: Path) -> tuple[np.ndarray, list[int]]:
    """(sample ids int64 in the order of the steps, those of a step by rank; steps that were trained on in more than
    one session) as the ranks noted them: of each step what its last session did, since only that was kept."""
    sessions: dict[tuple[int, int], dict[tuple[int, int], list[int]]] = {}
    for path in sorted(record.glob("*.jsonl")):
        session, rank = (int(part) for part in path.stem.split("-"))
        for line in path.read_text().splitlines():
            row = json.loads(line)
            sessions.setdefault((row["step"], session), {})[rank, row["micro_batch"]] = row["ids"]
    last = dict(sorted(sessions))
    ids = [sessions[step, session][key] for step, session in last.items() for key in sorted(sessions[step, session])]
    counts = {step: sum(1 for other, _ in sessions if other == step) for step in last}
    assert list(last) == list(range(len(last))), "a step is missing"
    return np.concatenate(ids).astype(np.int64), [step for step, count in counts.items() if count > 1]


def _be_rank(file: Path, rank: int, world: int, port: int, log: Path, notes: Path | None, death: Death | None) -> None:
    """Body of a process."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    )
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"})
    from retro.cli.main import run_command
    from retro.cli.train import main

    if notes is not None or death is not None:
        _watch(rank, notes, death)
    code = 70
    try:
        code = run_command(lambda: main([str(file)]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # a group whose peer died may not let the interpreter end


def _watch(rank: int, path: Path | None, death: Death | None) -> None:
    """Note, or die at, the micro-batches that come to the model."""
    from retro.train.trainer import Trainer

    notes = None if path is None else open(path, "w")  # noqa: SIM115 - for the life of the process
    forward_backward = Trainer.forward_backward
    step, place = -1, 0

    def watched(self: Trainer, batch: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal step, place
        step, place = self.state.step, place + 1 if self.state.step == step else 0
        if death == Death(rank, step, place):
            os.kill(os.getpid(), signal.SIGKILL)
        if notes is not None:
            notes.write(json.dumps({"step": step, "micro_batch": place, "ids": batch.sample_ids_B.tolist()}) + "\n")
            notes.flush()
        return forward_backward(self, batch, *arguments, **options)

    Trainer.forward_backward = watched  # type: ignore[method-assign]
