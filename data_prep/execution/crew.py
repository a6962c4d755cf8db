"""Worker processes that outlive a stage: to start one and to import what it needs takes seconds."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

from data_prep.execution.worker import serve
from data_prep.stage import Shard, Stage


@dataclasses.dataclass
class Worker:
    """A process, our end of its pipe, what it was started with, its place in the pool, and the shard that it has."""

    process: BaseProcess
    connection: Connection
    threads: int
    gpus: list[str] | None
    number: int
    shard: Shard | None = None

    def send(self, message: Any) -> bool:
        """False if it has died."""
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def prepare(self, stage: Stage, folder: Path, owner: str) -> None:
        """Give it the stage. If it has died that shows when it is given a shard."""
        self.send((stage, str(folder), owner))

    def end(self, patience: float = 0.0) -> int | None:
        """End it, waiting `patience` seconds for it to do so by itself; returns its exit code."""
        self.connection.close()
        self.process.join(patience)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode


def start_worker(name: str, number: int, threads: int, gpus: list[str] | None) -> Worker:
    """A fresh worker process without a stage."""
    # spawn, not fork: a forked child hangs for ever in OpenMP libraries (faiss, torch) that the parent has used.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    # Not daemonic: a stage may want processes of its own. It ends with us nevertheless (worker.py).
    process = context.Process(target=serve, args=(theirs, os.getpid(), threads, gpus), name=f"{name}-{number}")
    process.start()
    theirs.close()
    return Worker(process, ours, threads, gpus, number)


class Crew:
    """Workers between two stages. They hold nothing of the last one. A context: its end ends them."""

    def __init__(self) -> None:
        self._resting: list[Worker] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dismiss(self._resting)
        self._resting = []

    def hire(self, number: int, threads: int) -> Worker | None:
        """A resting worker with so many threads, None if there is none. Those with other numbers are dismissed: the
        libraries read it once."""
        self._dismiss([worker for worker in self._resting if worker.threads != threads])
        self._resting = [worker for worker in self._resting if worker.threads == threads]
        while self._resting:
            worker = self._resting.pop()
            if worker.process.is_alive():
                worker.number = number
                return worker
            worker.end()
        return None

    def rest(self, worker: Worker) -> None:
        """Keep an idle worker for the next stage. One with a GPU is not kept: it would keep the memory of it."""
        if worker.gpus is None and worker.send(None):
            self._resting.append(worker)
        else:
            worker.end()

    def _dismiss(self, workers: list[Worker]) -> None:
        for worker in workers:
            with contextlib.suppress(OSError):
                worker.process.kill()
            worker.end()
