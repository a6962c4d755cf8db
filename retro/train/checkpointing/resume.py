"""Going back to a checkpoint: all that a run is, not its weights only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from retro.artifacts.checkpoint_folders import latest_checkpoint
from retro.config.errors import ArtifactMissingError
from retro.model.retro import RetroModel
from retro.train.callbacks.base import Callback
from retro.train.checkpointing.identity import Identity
from retro.train.checkpointing.load import load_checkpoint
from retro.train.checkpointing.peers import Peers
from retro.train.distributed import Processes
from retro.train.randomness import restore_generators
from retro.train.state import TrainState


def resume(
    path: Path,
    *,
    model: RetroModel,
    optimizer: torch.optim.Optimizer,
    callbacks: Sequence[Callback],
    identity: Identity,
    processes: Processes,
    peers: Peers,
) -> TrainState:
    """Put model, optimizer, generators and callbacks where they were at the checkpoint `path`; returns its position.

    All processes call it. Raises as `load_checkpoint`. The loader is the caller's business: it begins at
    `TrainState.samples`.
    """
    resumed = load_checkpoint(path, model=model, optimizer=optimizer, identity=identity, peers=peers)
    restore_generators(resumed.rng, processes)
    for callback in callbacks:
        if callback.name in resumed.callbacks:
            callback.load_state(resumed.callbacks[callback.name])
    return resumed.state


def newest_checkpoint(folder: Path, peers: Peers) -> Path | None:
    """The newest finished checkpoint below `folder`, the same in all processes: on a network file system one may see
    it before another does."""
    return peers.ask_main(lambda: latest_checkpoint(folder))


def restore(
    folder: Path,
    *,
    model: RetroModel,
    optimizer: torch.optim.Optimizer,
    callbacks: Sequence[Callback],
    identity: Identity,
    processes: Processes,
    peers: Peers,
) -> TrainState:
    """`resume` from the newest checkpoint below `folder`, in the middle of a run; one that is still being written must
    have been waited for. Raises ArtifactMissingError if there is none any more."""
    path = newest_checkpoint(folder, peers)
    if path is None:
        raise ArtifactMissingError(f"{folder}: no finished checkpoint to go back to; they were removed during the run")
    return resume(
        path,
        model=model,
        optimizer=optimizer,
        callbacks=callbacks,
        identity=identity,
        processes=processes,
        peers=peers,
    )
