"""Runs whose numbers are bad at chosen places of the sample stream, killed at chosen moments around it."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from retro.train import nonfinite
from retro.train.trainer import Trainer
from tests.train.ranks import free_port

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.train.poison", "tests.train.ranks", "retro.cli.train", "retro.train.run"])

SetAttribute = Callable[[Any, str, Any], None]


@dataclass(frozen=True)
class Poison:
    """Steps that begin at `positions` of the sample stream are bad in the process `rank`, in its micro-batch
    `micro_batch`: the loss that it reports, or its gradient. death: SIGKILL once (the file `died` says that it was),
    with the run put back and nobody told; with all told but the history; when it is in the history; or at the beginning
    of a step after a rollback."""

    positions: tuple[int, ...]
    rank: int = 0
    micro_batch: int = 0
    where: Literal["loss", "gradient"] = "loss"
    death: Literal["put back", "told", "kept"] | int | None = None
    died: Path | None = None

    def install(self, set_attribute: SetAttribute = setattr) -> None:
        """In this process."""
        forward_backward, go_back, append = Trainer.forward_backward, Trainer.go_back, nonfinite.append_json_line
        place, at = 0, -1

        def poisoned(trainer: Trainer, batch: Any, last: bool = True) -> Any:
            nonlocal place, at
            place, at = (place + 1, at) if trainer.state.samples == at else (0, trainer.state.samples)
            if trainer.state.rollbacks and trainer.state.step == self.death:
                self._die()
            loss = forward_backward(trainer, batch, last)
            if at in self.positions and trainer.processes.rank == self.rank and place == self.micro_batch:
                if self.where == "loss":
                    return loss * math.nan
                next(p for p in trainer.model.parameters() if p.grad is not None).grad.mul_(math.inf)  # type: ignore[union-attr]
            return loss

        def watched_go_back(trainer: Trainer, state: Any) -> None:
            go_back(trainer, state)
            if self.death == "put back":
                self._die()

        def watched_append(path: Path, row: dict[str, Any]) -> None:
            if self.death == "told":
                self._die()
            append(path, row)
            if self.death == "kept":
                self._die()

        set_attribute(Trainer, "forward_backward", poisoned)
        set_attribute(Trainer, "go_back", watched_go_back)
        set_attribute(nonfinite, "append_json_line", watched_append)

    def _die(self) -> None:
        assert self.died is not None
        if not self.died.exists():
            self.died.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)


def run_poisoned(file: Path, poison: Poison, log: Path, world: int = 1) -> list[int]:
    """One session of the run in processes of its own: exit codes by rank."""
    port = free_port()
    processes = [
        _CONTEXT.Process(target=_be_rank, args=(file, rank, world, port, log, poison)) for rank in range(world)
    ]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=120)
        return [-99 if process.exitcode is None else process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()


def _be_rank(file: Path, rank: int, world: int, port: int, log: Path, poison: Poison) -> None:
    from tests.train import ranks

    poison.install()
    ranks._be_rank(file, rank, world, port, log, None, None)


def without_death(poison: Poison) -> Poison:
    return dataclasses.replace(poison, death=None)
