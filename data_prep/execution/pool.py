"""A pool of worker processes on this machine.

The standard pools do not say which task a dead worker had, and break as a whole. Here every worker has one shard and a
pipe of its own: a death is noticed by the process's sentinel, its shard comes back as failed, and a fresh process takes
the place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from data_prep.execution.backend import Backend, Outcome
from data_prep.execution.devices import gpus_of_worker, usable_cores, visible_gpus
from data_prep.execution.failures import Failure, describe_death
from data_prep.execution.worker import serve
from data_prep.stage import Shard, Stage
from retro.config.errors import RetroError


@dataclasses.dataclass
class _Worker:
    """A process, our end of its pipe, its place in the pool, and the shard that it has."""

    process: BaseProcess
    connection: Connection
    number: int
    shard: Shard | None = None


class LocalPool(Backend):
    """`workers` spawned processes; they are started when they are first needed."""

    def __init__(self, stage: Stage, folder: Path, owner: str, workers: int) -> None:
        """Worker threads: the cores divided among the workers. GPUs: `stage.gpus` for each, dealt round."""
        # spawn, not fork: a forked child hangs for ever in OpenMP libraries (faiss, torch) that the parent has used.
        self._context = multiprocessing.get_context("spawn")
        self._stage, self._folder, self._owner = stage, folder, owner
        self._threads = max(1, usable_cores() // workers)
        self._gpus = visible_gpus() if stage.gpus else []
        self._unused = list(range(workers))[::-1]
        self._idle: list[_Worker] = []
        self._working: list[_Worker] = []

    def free(self) -> int:
        """Workers without a shard, started or not."""
        return len(self._unused) + len(self._idle)

    def busy(self) -> int:
        """Workers with a shard."""
        return len(self._working)

    def submit(self, shard: Shard) -> None:
        """Give the shard to an idle worker, or start one."""
        while self._idle:
            worker = self._idle.pop()
            if self._send(worker, shard):
                return
            self._retire(worker)  # died while idle: no shard is to blame
        worker = self._start(self._unused.pop())
        if not self._send(worker, shard):
            worker.shard = shard  # died at once: `wait` finds it
            self._working.append(worker)

    def wait(self, timeout: float) -> list[Outcome]:
        """Outcomes that arrived, and failures of the shards whose worker has died."""
        if not self._working:
            return []
        wait([end for w in self._working for end in (w.connection, w.process.sentinel)], timeout)
        outcomes = []
        for worker in list(self._working):
            answered, message = self._receive(worker)
            if not answered and worker.process.is_alive():
                continue
            shard, worker.shard = worker.shard, None
            assert shard is not None
            self._working.remove(worker)
            if isinstance(message, Outcome):
                self._idle.append(worker)
                outcomes.append(message)
                continue
            exit_code = self._retire(worker)
            if isinstance(message, Failure):
                raise RetroError(f"{self._stage.name}: a worker process cannot be given the stage: {message.cause}")
            outcomes.append(Outcome(shard, None, describe_death(exit_code)))
        return outcomes

    def close(self) -> None:
        """End the idle workers, kill the others."""
        for worker in [*self._idle, *self._working]:
            worker.connection.close()
            worker.process.kill()
        for worker in [*self._idle, *self._working]:
            worker.process.join()
        self._idle, self._working = [], []

    def _start(self, number: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        gpus = gpus_of_worker(number, self._stage.gpus, self._gpus)
        # Not daemonic: a stage may want processes of its own. It ends with us nevertheless (worker.py).
        process = self._context.Process(
            target=serve, args=(theirs, os.getpid(), self._threads, gpus), name=f"{self._stage.name}-{number}"
        )
        process.start()
        theirs.close()
        worker = _Worker(process, ours, number)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # shows when it is given its shard
            ours.send((self._stage, str(self._folder), self._owner))
        return worker

    def _send(self, worker: _Worker, shard: Shard) -> bool:
        try:
            worker.connection.send(shard)
        except (BrokenPipeError, ConnectionResetError):
            return False
        worker.shard = shard
        self._working.append(worker)
        return True

    def _receive(self, worker: _Worker) -> tuple[bool, Any]:
        """(whether the worker is done with its shard, its message; None if it has died)."""
        try:
            if worker.connection.poll():
                return True, worker.connection.recv()
        except (EOFError, OSError):
            return True, None
        return False, None

    def _retire(self, worker: _Worker) -> int | None:
        """Take a dead worker out of the pool; its place is free for a fresh one."""
        worker.connection.close()
        worker.process.join(5)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        self._unused.append(worker.number)
        return worker.process.exitcode
