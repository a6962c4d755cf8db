"""Reading a checkpoint into a model and an optimizer, spread over processes in whatever way."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from retro.artifacts.checkpoint_folders import MODEL, OPTIMIZER, RNG_NAME, STATE_NAME
from retro.artifacts.fingerprint import sha256_file
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ConfigError
from retro.config.loader import from_dict
from retro.model.retro import RetroModel
from retro.model.tensor_files import TensorFiles, open_tensor_files
from retro.model.tensor_header import parse_object
from retro.train.checkpointing.identity import REMEDY, Identity, check_identity, open_checkpoint_manifest
from retro.train.checkpointing.peers import ALONE, Peers, first_failure, lost_peer
from retro.train.checkpointing.save import STEMS, Resumed
from retro.train.checkpointing.staging import global_shape
from retro.train.checkpointing.storage import LoadPlans, TensorSetReader
from retro.train.parallel.state import fill_optimizer_state, named_model_state, named_optimizer_state
from retro.train.state import TrainState


def load_checkpoint(
    path: Path,
    *,
    model: RetroModel,
    optimizer: torch.optim.Optimizer,
    identity: Identity,
    peers: Peers = ALONE,
) -> Resumed:
    """Fill `model` and `optimizer` from the checkpoint at `path` and return the rest. All processes call it.

    How many processes wrote it and how its tensors were spread does not matter. Every file is read by one process for
    its checksum before anything is filled; an error in one process is raised in all. Raises ArtifactCorruptError naming
    the file (missing, truncated, altered) or ArtifactMismatchError naming the fields in which it belongs to something
    else than `identity`. Model and optimizer are then as they were.
    """
    peers.agree(lambda: _verify(path, identity, peers))
    resumed, sets = peers.agree(lambda: _open(path))
    entries = {f"{MODEL}/{name}": value for name, value in named_model_state(model).items()}
    # A run that was saved before its first step has none.
    state = named_optimizer_state(model, optimizer, create=True) if sets[OPTIMIZER].names else {}
    entries |= {f"{OPTIMIZER}/{name}": value for name, value in state.items()}
    peers.agree(lambda: _compare(sets, entries))
    _fill(entries, sets, peers)
    fill_optimizer_state(model, optimizer, state)
    return resumed


def _verify(path: Path, identity: Identity, peers: Peers) -> None:
    """Whether it is the run's, and this process's share of the checksums: over all processes each file is read once,
    and all read about as much."""
    check_identity(path, identity)
    loads = [0] * peers.world
    entries = open_checkpoint_manifest(path).all_files()
    for entry in sorted(entries, key=lambda entry: (-int(entry["bytes"]), entry["name"])):
        reader = loads.index(min(loads))
        loads[reader] += int(entry["bytes"])
        if reader != peers.rank:
            continue
        found = sha256_file(path / entry["name"])
        if found != entry["sha256"]:
            raise ArtifactCorruptError(
                f"{path / entry['name']}: expected sha256 {entry['sha256'][:16]}, found {found[:16]}; {REMEDY}"
            )


def _open(path: Path) -> tuple[Resumed, dict[str, TensorFiles]]:
    """The small files, and the tensors without their content."""
    rng = _load_tensors(path / RNG_NAME)
    state, callbacks = read_state(path / STATE_NAME)
    resumed = Resumed(state, rng, callbacks)
    sets = {stem: open_tensor_files(path, stem) for stem in STEMS}
    recorded = {entry["name"] for entry in open_checkpoint_manifest(path).all_files()}
    for files in sets.values():
        for file in files.all_paths:
            if file.name not in recorded:
                raise ArtifactCorruptError(
                    f"{file}: not recorded in the manifest, so nobody knows what it is; {REMEDY}"
                )
    return resumed, sets


def read_state(path: Path) -> tuple[TrainState, dict[str, dict[str, Any]]]:
    """Position and callbacks' states of a state.json. Raises ArtifactCorruptError."""

    def unreadable(problem: object) -> ArtifactCorruptError:
        return ArtifactCorruptError(f"{path}: not readable ({problem}); {REMEDY}")

    try:
        stored = parse_object(path.read_bytes(), unreadable)
        return from_dict(TrainState, stored["state"], source="state"), dict(stored["callbacks"])
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise unreadable(error) from None


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise ArtifactCorruptError(f"{path}: not a whole safetensors file ({line}); {REMEDY}") from None


def _compare(sets: Mapping[str, TensorFiles], entries: Mapping[str, Any]) -> None:
    """Names and shapes, before anything is filled."""
    for stem, files in sets.items():
        prefix = f"{stem}/"
        expected = {full.removeprefix(prefix): value for full, value in entries.items() if full.startswith(prefix)}
        where = files.index or files.files[0]
        what = "weights of another model" if stem == MODEL else "state of other parameters than the model's"
        unknown = sorted(set(files.names) - expected.keys()) + sorted(expected.keys() - set(files.names))
        if unknown:
            raise ArtifactMismatchError(f"{where}: {what}, for instance {unknown[0]}")
        for name, value in expected.items():
            shape, found = tuple(global_shape(name, value)), tuple(files.shape(name))
            if shape != found:
                raise ArtifactMismatchError(
                    f"{where}: {what}: {name}: expected shape {list(shape)}, found {list(found)}"
                )


def _fill(entries: dict[str, Any], sets: Mapping[str, TensorFiles], peers: Peers) -> None:
    reader = TensorSetReader(sets)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(
                entries,
                storage_reader=reader,
                planner=LoadPlans(),
                process_group=peers.group,
                no_dist=peers.world == 1,
            )
    except CheckpointException as error:
        cause = first_failure(error)
        raise (ArtifactCorruptError(f"{cause}; {REMEDY}") if isinstance(cause, OSError) else cause) from None
    except RuntimeError as error:
        if peers.world == 1:
            raise
        raise lost_peer(error) from None
