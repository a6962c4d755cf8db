"""What the processes of a run tell each other about a checkpoint, and how an error of one ends all."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from retro.config.errors import RetroError
from retro.train.distributed import Processes

T = TypeVar("T")

#: A process waits so long for another that is still writing or reading. One that died is noticed at once.
_PATIENCE = timedelta(hours=2)


class CheckpointError(RetroError):
    """A checkpoint could not be written (full disk, a folder that is not shared, a process that is gone)."""


class Peers:
    """This process among those that write and read a checkpoint together.

    Messages go through a gloo group that nothing else uses, so that a thread can send them while training sends its
    own. group: None for one process.
    """

    def __init__(self, rank: int = 0, world: int = 1, group: dist.ProcessGroup | None = None) -> None:
        self.rank, self.world, self.group = rank, world, group

    @property
    def is_main(self) -> bool:
        """Whether this process writes what there is once."""
        return self.rank == 0

    def gather(self, make: Callable[[], T]) -> list[T]:
        """What `make` returns in every process, in the order of ranks; all must call this.

        An exception in any process is raised in all: its own where it happened; elsewhere the same if it is a
        RetroError, and otherwise a CheckpointError that names it. Of all processes the first one that has it reports it
        (`said_by_another`).
        """
        value, error = None, None
        try:
            value = make()
        except Exception as caught:
            if self.world == 1:
                raise
            error = caught
        found: list[Any] = [(value, None)] * self.world
        if self.world > 1:
            try:
                dist.all_gather_object(found, (value, _portable(error)), group=self.group)
            except RuntimeError as failure:
                raise error or lost_peer(failure) from None
        failed = [rank for rank, (_, theirs) in enumerate(found) if theirs is not None]
        if failed and error is None:
            theirs = found[failed[0]][1]
            error = theirs if isinstance(theirs, RetroError) else _of_other(failed[0], theirs)
        if error is not None:
            if isinstance(error, RetroError):
                error.said_by_another = bool(failed) and failed[0] != self.rank
            raise error
        return [content for content, _ in found]

    def agree(self, make: Callable[[], T]) -> T:
        """What `make` returns in this process, when it has returned in all. Exceptions as in `gather`."""
        kept: list[T] = []
        self.gather(lambda: kept.append(make()))
        return kept[0]

    def ask_main(self, make: Callable[[], T]) -> T:
        """What `make` returns in the main process; only there it is called. Exceptions as in `gather`."""
        found: list[Any] = self.gather(make if self.is_main else lambda: None)  # type: ignore[arg-type, return-value]
        return found[0]


ALONE = Peers()


def open_peers(processes: Processes) -> Peers:
    """The peers of a run. Every process must call it, at the same point: it makes a group."""
    if processes.world == 1:
        return ALONE
    return Peers(processes.rank, processes.world, dist.new_group(backend="gloo", timeout=_PATIENCE))


def first_failure(error: CheckpointException) -> Exception:
    """The exception of the lowest rank behind torch.distributed.checkpoint's, the same in all processes."""
    rank = min(error.failures)
    cause = error.failures[rank][0]
    if isinstance(cause, RetroError | OSError):
        return cause
    return _of_other(rank, f"{type(cause).__name__}: {cause}")


def _portable(error: Exception | None) -> RetroError | str | None:
    """What another process can be sent: exceptions of libraries cannot always be pickled."""
    if error is None or isinstance(error, RetroError):
        return error
    return f"{type(error).__name__}: {error}"


def _of_other(rank: int, error: str) -> CheckpointError:
    return CheckpointError(f"checkpoint: process {rank} failed: {error}")


def lost_peer(error: RuntimeError) -> CheckpointError:
    """What to say when a message did not come through."""
    line = str(error).splitlines()[0]
    return CheckpointError(
        f"checkpoint: another process of the run is gone or did not answer ({line}); start the run again, it resumes "
        "from its newest checkpoint"
    )
