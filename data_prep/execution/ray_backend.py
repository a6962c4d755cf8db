"""Shards on a Ray cluster: actors that hold the stage and are given one shard at a time.

Ray's own retries are off: which shard failed how often is decided where all backends decide it (loop.py). Actors and
not tasks, so that what a stage opens (a store, a model) is opened once per worker. An actor is given a shard only when
it runs: on a busy cluster, or after the loss of a node, there may be fewer than were asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

from data_prep.execution.backend import Backend, Outcome, attempt_shard
from data_prep.execution.failures import Failure
from data_prep.execution.ray_session import connect
from data_prep.execution.records import WORK
from data_prep.stage import Shard, Stage
from retro.config.errors import ConfigError, RetroError
from retro.config.execution import ExecutorConfig

_LOOK_SECONDS = 5.0


class RayWorker:
    """What runs in an actor. Plain Python, so that it is the same code as everywhere else."""

    def __init__(self, stage: Stage, folder: str, owner: str, place: str) -> None:
        """`place`: the working directory of the driver, to which relative paths of the configuration refer."""
        self._stage, self._folder, self._owner, self._place = stage, Path(folder), owner, place

    def check(self) -> str:
        """Why this node cannot work, "" if it can: it must see the files of the process that hands out the work."""
        try:
            os.chdir(self._place)
        except OSError as error:
            return f"folder {self._place}: {error.strerror}"
        if not (self._folder / WORK).is_dir():
            return f"folder {self._folder} is not there, or is another one"
        return ""

    def run(self, shard: Shard) -> Outcome:
        """Run and commit one shard."""
        return attempt_shard(self._stage, self._folder, shard, self._owner)


@dataclasses.dataclass
class _Actor:
    """An actor and the shard that it has (None while it starts)."""

    handle: Any
    shard: Shard | None = None


class RayBackend(Backend):
    """At most `workers` actors (0: as many as the cluster has room for), never more than there are shards."""

    def __init__(
        self, stage: Stage, folder: Path, owner: str, workers: int, shards: int, config: ExecutorConfig
    ) -> None:
        """Raises ConfigError if there is no cluster, or if no node of it can hold a worker."""
        self._ray = connect(config)
        self._stage, self._config = stage, config
        self._workers, self._shards = workers, shards
        self._needs = {"CPU": config.num_cpus, "GPU": float(stage.gpus)}
        self._check_room()
        self._class = self._ray.remote(RayWorker).options(
            num_cpus=config.num_cpus, num_gpus=stage.gpus, max_restarts=0, max_task_retries=0
        )
        # The stage travels once; every actor fetches it.
        self._arguments = (self._ray.put(stage), str(folder.resolve()), owner, os.getcwd())
        self._idle: list[_Actor] = []
        self._waiting: dict[Any, _Actor] = {}  # by the reference of the call that they are at
        self._failed_starts = 0
        self._looked = time.monotonic()
        self._target = self._count_room()
        self._fill()

    def free(self) -> int:
        """Actors that run and have no shard."""
        return len(self._idle)

    def busy(self) -> int:
        """Actors with a shard."""
        return sum(actor.shard is not None for actor in self._waiting.values())

    def submit(self, shard: Shard) -> None:
        """Give the shard to an idle actor."""
        actor = self._idle.pop()
        actor.shard = shard
        self._waiting[actor.handle.run.remote(shard)] = actor

    def wait(self, timeout: float) -> list[Outcome]:
        """Outcomes that arrived, and failures of the shards whose actor or node has died.

        Raises RetroError if the cluster is lost or if actors cannot start.
        """
        try:
            if time.monotonic() - self._looked > _LOOK_SECONDS:  # nodes may have come
                self._looked = time.monotonic()
                self._target = max(self._target, self._count_room())
            self._fill()
            ready, _ = self._ray.wait(list(self._waiting), num_returns=1, timeout=timeout)
            if ready:  # and whatever else is there by now
                ready, _ = self._ray.wait(list(self._waiting), num_returns=len(self._waiting), timeout=0)
            found = [self._receive(reference) for reference in ready]
        except self._ray.exceptions.RaySystemError as error:
            raise RetroError(f"{self._stage.name}: the connection to Ray is lost: {_one_line(error)}") from None
        return [outcome for outcome in found if outcome is not None]

    def close(self) -> None:
        """Kill the actors. The connection stays for the next stage."""
        for actor in [*self._idle, *self._waiting.values()]:
            self._kill(actor)
        self._idle, self._waiting = [], {}

    def _receive(self, reference: Any) -> Outcome | None:
        actor = self._waiting.pop(reference)
        shard, actor.shard = actor.shard, None
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(reference)
        except (errors.RayActorError, errors.RayTaskError, errors.NodeDiedError, errors.ObjectLostError) as error:
            self._kill(actor)
            if shard is not None:
                return Outcome(shard, None, Failure(_death(error)))
            self._count_failed_start(_one_line(error))
            return None
        if isinstance(answer, Outcome):
            self._failed_starts = 0
            self._idle.append(actor)
            return answer
        if answer:
            raise ConfigError(
                f"executor: a node of the Ray cluster does not see the output: {answer}; all nodes need the root "
                "folder, the corpus and the working directory under the same paths on a shared file system"
            )
        self._idle.append(actor)
        return None

    def _count_failed_start(self, cause: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= max(self._config.attempts, 2 * self._target):
            raise RetroError(
                f"{self._stage.name}: workers cannot be started on the Ray cluster: {cause}; all nodes need this "
                "package and its extras"
            )

    def _fill(self) -> None:
        """Ask for actors up to the number wanted. Those that find no room wait in Ray's queue."""
        while len(self._idle) + len(self._waiting) < self._target:
            handle = self._class.remote(*self._arguments)
            self._waiting[handle.check.remote()] = _Actor(handle)

    def _kill(self, actor: _Actor) -> None:
        with contextlib.suppress(ValueError, self._ray.exceptions.RayError):  # it has gone already
            self._ray.kill(actor.handle, no_restart=True)

    def _count_room(self) -> int:
        """Actors to have: those asked for, or those that fit into the cluster; no more than shards."""
        if self._workers:
            return min(self._workers, self._shards)
        there = self._ray.cluster_resources()
        room = min(int(there.get(name, 0.0) / need) for name, need in self._needs.items() if need)
        return max(1, min(room, self._shards))

    def _check_room(self) -> None:
        """An actor that fits on no node would wait for ever."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if any(all(node.get(name, 0.0) >= need for name, need in self._needs.items()) for node in nodes):
            return
        wanted = " and ".join(f"{need:g} {name}" for name, need in self._needs.items() if need)
        found = "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes) or "no node"
        raise ConfigError(
            f"executor: a worker of {self._stage.name} needs {wanted} on one node of the Ray cluster, found {found}; "
            "change executor.num_cpus or the device of the stage, or add such a node"
        )


def _death(error: Exception) -> str:
    """Ray explains a death in a page of possible reasons. A line is enough; the page is in Ray's logs."""
    text = str(error).lower()
    if any(phrase in text for phrase in ("node has died", "node died", "node was terminated")):
        return "its node of the Ray cluster died"
    if type(error).__name__ == "ActorUnavailableError":
        return "its node of the Ray cluster, or the worker process there, cannot be reached any more"
    return "its Ray worker process died (killed, out of memory, or ended itself)"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
