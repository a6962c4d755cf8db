"""A pool of worker processes on this machine.

The standard pools do not say which task a dead worker had, and break as a whole. Here every worker has one shard and a
pipe of its own: a death is noticed by the process's sentinel, its shard comes back as failed, and a fresh process takes
the place.
"""

from __future__ import annotations

from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from data_prep.execution.backend import Backend, Outcome
from data_prep.execution.crew import Crew, Worker, start_worker
from data_prep.execution.devices import gpus_of_worker, usable_cores, visible_gpus
from data_prep.execution.failures import Failure, describe_death
from data_prep.stage import Shard, Stage
from retro.config.errors import RetroError


class LocalPool(Backend):
    """`workers` spawned processes; they are started when they are first needed."""

    def __init__(self, stage: Stage, folder: Path, owner: str, workers: int, crew: Crew | None = None) -> None:
        """Worker threads: the cores divided among the workers. GPUs: `stage.gpus` for each, dealt round. `crew`: where
        workers come from and go to; without one they end with the pool."""
        self._stage, self._folder, self._owner, self._crew = stage, folder, owner, crew
        self._threads = max(1, usable_cores() // workers)
        self._gpus = visible_gpus() if stage.gpus else []
        self._unused = list(range(workers))[::-1]
        self._idle: list[Worker] = []
        self._working: list[Worker] = []

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
            if worker.send(shard):
                break
            self._retire(worker)  # died while idle: no shard is to blame
        else:
            worker = self._start(self._unused.pop())
            worker.send(shard)  # if it died at once `wait` finds it
        worker.shard = shard
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
        """Kill the workers that have a shard; the others rest or end."""
        for worker in self._working:
            worker.process.kill()
        for worker in self._working:
            worker.end()
        for worker in self._idle:
            if self._crew is not None:
                self._crew.rest(worker)
            else:
                worker.process.kill()
                worker.end()
        self._idle, self._working = [], []

    def _start(self, number: int) -> Worker:
        gpus = gpus_of_worker(number, self._stage.gpus, self._gpus)
        worker = self._crew.hire(number, self._threads) if self._crew is not None and gpus is None else None
        worker = worker or start_worker(self._stage.name, number, self._threads, gpus)
        worker.prepare(self._stage, self._folder, self._owner)
        return worker

    def _receive(self, worker: Worker) -> tuple[bool, Any]:
        """(whether the worker is done with its shard, its message; None if it has died)."""
        try:
            if worker.connection.poll():
                return True, worker.connection.recv()
        except (EOFError, OSError):
            return True, None
        return False, None

    def _retire(self, worker: Worker) -> int | None:
        """Take a dead worker out of the pool; its place is free for a fresh one."""
        self._unused.append(worker.number)
        return worker.end(patience=5)
