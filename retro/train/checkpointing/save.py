"""Writing a checkpoint: a snapshot of the run, then its files, then its name."""

from __future__ import annotations

import dataclasses
import errno
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from retro.artifacts.atomic import write_json_atomic
from retro.artifacts.checkpoint_folders import CHECKPOINT_KIND, MODEL, OPTIMIZER, RNG_NAME, STATE_NAME
from retro.artifacts.fingerprint import fingerprint
from retro.artifacts.manifest import Manifest, describe_file, write_manifest
from retro.config.loader import to_dict
from retro.model.retro import RetroModel
from retro.model.tensor_bytes import write_tensors
from retro.model.weights import CONFIG_NAME
from retro.train.checkpointing.folders import commit, make_temporary, point_best, prune
from retro.train.checkpointing.identity import Identity
from retro.train.checkpointing.peers import ALONE, CheckpointError, Peers, first_failure, lost_peer
from retro.train.checkpointing.staging import StagedTensor, Staging, is_spread, view
from retro.train.checkpointing.storage import SavePlans, TensorSetWriter
from retro.train.parallel.state import named_model_state, named_optimizer_state
from retro.train.state import TrainState

T = TypeVar("T")

STAGE, STAGE_VERSION = "train", 1
STEMS = (MODEL, OPTIMIZER)


@dataclass(frozen=True)
class Resumed:
    """What a checkpoint holds besides the model and the optimizer.

    rng: uint8 [ranks that see different data, n] generator states by kind ("cpu", "cuda"); callbacks: their states by
    name.
    """

    state: TrainState
    rng: dict[str, Tensor]
    callbacks: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest `keep`, and that of the step `best` (None = the one that is best already)."""

    keep: int
    best: int | None = None


@dataclass(frozen=True)
class Snapshot:
    """All of a checkpoint that is in this process: `<stem>/<tensor>` as staged (nothing if another process writes it),
    and the small parts, which the main process writes. spread: tensors lie in pieces in several processes."""

    model_config: dict[str, Any]
    tensors: dict[str, StagedTensor]
    spread: bool
    resumed: Resumed

    @property
    def step(self) -> int:
        """After so many optimizer steps."""
        return self.resumed.state.step


def take_snapshot(
    model: RetroModel,
    optimizer: torch.optim.Optimizer,
    resumed: Resumed,
    peers: Peers = ALONE,
    staging: Staging | None = None,
) -> Snapshot:
    """The state of the run now; with `staging` a copy, so that training can go on while it is written.

    Of replicated tensors the main process writes one file; the others then hold nothing. Raises TypeError for an
    optimizer whose state is not all tensors.
    """
    entries = {f"{MODEL}/{name}": value for name, value in named_model_state(model).items()}
    entries |= {f"{OPTIMIZER}/{name}": value for name, value in named_optimizer_state(model, optimizer).items()}
    spread = peers.world > 1 and is_spread(entries)
    if not spread and not peers.is_main:
        entries = {}
    tensors = view(entries) if staging is None else staging.copy(entries)
    return Snapshot(to_dict(model.config), tensors, spread, resumed)


def write_snapshot(
    folder: Path, snapshot: Snapshot, identity: Identity, retention: Retention, peers: Peers = ALONE
) -> Path:
    """Write the checkpoint below `folder`, then delete those that `retention` does not keep. Returns its folder.

    All processes call it; when it returns in any, the checkpoint is there. A kill at any moment leaves the earlier
    checkpoints and possibly this one, whole. Raises CheckpointError, in all processes, if one cannot write.
    """
    temporary: Path | None = None
    try:
        temporary = folder / peers.ask_main(_guarded(folder, snapshot, make_temporary, folder, snapshot.step))
        files = _write_tensors(folder, temporary, snapshot, peers)
        return peers.ask_main(
            _guarded(folder, snapshot, _finish, folder, temporary, snapshot, files, identity, retention)
        )
    except Exception:
        if temporary is not None and peers.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def save_checkpoint(
    folder: Path,
    *,
    model: RetroModel,
    optimizer: torch.optim.Optimizer,
    resumed: Resumed,
    identity: Identity,
    keep: int,
    peers: Peers = ALONE,
) -> Path:
    """Write the checkpoint of `resumed.state.step` below `folder`, then delete all but the newest `keep` and the best.

    `take_snapshot` without a copy, and `write_snapshot`.
    """
    snapshot = take_snapshot(model, optimizer, resumed, peers)
    return write_snapshot(folder, snapshot, identity, Retention(keep), peers)


def _write_tensors(folder: Path, temporary: Path, snapshot: Snapshot, peers: Peers) -> list[dict[str, Any]]:
    """Write both sets of tensors; the manifest's records of the files."""
    if not snapshot.spread:
        return peers.ask_main(_guarded(folder, snapshot, _write_whole, temporary, snapshot.tensors))
    writer = TensorSetWriter(temporary, peers.rank, STEMS)
    try:
        dcp.save(snapshot.tensors, storage_writer=writer, planner=SavePlans(), process_group=peers.group)
    except CheckpointException as error:
        cause = first_failure(error)
        raise (_not_written(cause, folder, snapshot) if isinstance(cause, OSError) else cause) from None
    except RuntimeError as error:
        raise lost_peer(error) from None
    return [file for of_rank in peers.gather(lambda: writer.files) for file in of_rank]


def _write_whole(temporary: Path, tensors: Mapping[str, StagedTensor]) -> list[dict[str, Any]]:
    records = []
    for stem, metadata in ((MODEL, {"format": "pt"}), (OPTIMIZER, None)):
        prefix = f"{stem}/"
        content = {full.removeprefix(prefix): t.whole() for full, t in tensors.items() if full.startswith(prefix)}
        records.append(write_tensors(temporary / f"{stem}.safetensors", content, metadata))
    return records


def _finish(
    folder: Path,
    temporary: Path,
    snapshot: Snapshot,
    files: list[dict[str, Any]],
    identity: Identity,
    retention: Retention,
) -> Path:
    """In the main process, when all tensors are on the disk: the small files, the manifest, the name."""
    for file in files:
        if not (temporary / file["name"]).is_file():
            raise FileNotFoundError(errno.ENOENT, "written by another process, but not seen here", file["name"])
    if snapshot.spread:
        files = files + [describe_file(temporary / f"{stem}.index.json") for stem in STEMS]
    resumed, settings = snapshot.resumed, identity.config
    state = resumed.state
    config = {
        "model": snapshot.model_config,
        "tokenizer": {"fingerprint": identity.tokenizer},
        "release": {"fingerprint": identity.release},
        "sequence_length": settings["sequence_length"],
        "num_neighbors": settings["num_neighbors"],
        "packing": settings["packing"],
        "step": state.step,
    }
    write_json_atomic(temporary / CONFIG_NAME, config)
    write_json_atomic(temporary / STATE_NAME, {"state": dataclasses.asdict(state), "callbacks": resumed.callbacks})
    files = files + [
        describe_file(temporary / CONFIG_NAME),
        write_tensors(temporary / RNG_NAME, resumed.rng),
        describe_file(temporary / STATE_NAME),
    ]
    stored = identity.to_dict()
    write_manifest(
        temporary,
        Manifest(
            kind=CHECKPOINT_KIND,
            stage=STAGE,
            stage_version=STAGE_VERSION,
            fingerprint=fingerprint(STAGE, STAGE_VERSION, {**stored, "step": state.step}, {}),
            config=stored,
            inputs={},
            shards=[],
            files=sorted(files, key=lambda file: file["name"]),
            stats={"step": state.step, "samples": state.samples, "tokens": state.tokens},
        ),
    )
    final = commit(folder, temporary, state.step)
    point_best(folder, retention.best)
    prune(folder, retention.keep)
    return final


def _guarded(folder: Path, snapshot: Snapshot, function: Callable[..., T], *arguments: Any) -> Callable[[], T]:
    """The call, with an error of the file system as one that says what to do."""

    def call() -> T:
        try:
            return function(*arguments)
        except OSError as error:
            raise _not_written(error, folder, snapshot) from None

    return call


def _not_written(error: OSError, folder: Path, snapshot: Snapshot) -> CheckpointError:
    where = f" ({Path(error.filename).name})" if isinstance(error.filename, str | Path) else ""
    remedy = "make room or let the run write there"
    if isinstance(error, FileNotFoundError):
        remedy = "all processes must see the same folder: set run_root to a place that all nodes share"
    return CheckpointError(
        f"{folder}: the checkpoint of step {snapshot.step} could not be written: {error.strerror or error}{where}; "
        f"{remedy}, and start the run again, it resumes from its newest checkpoint"
    )
