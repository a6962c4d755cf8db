"""Checkpoints: artifact kind "checkpoint", one folder per checkpoint, complete or not there.

`checkpoints/step_000100/` holds model.safetensors and config.json (retro.model.weights), optimizer.safetensors
(`<parameter>.<state>` per tensor), rng.safetensors (uint8 generator states), state.json (position, callbacks) and
manifest.json, whose `config` is the run's identity and whose checksums cover every file. Everything is written into a
temporary sibling, the manifest last, and the folder is renamed into place; deleting begins with a rename too. So a
folder of that name without a manifest is unfinished (a broken copy, say) and ignored. Nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from retro.artifacts.atomic import fsync_directory, fsync_file, write_json_atomic
from retro.artifacts.checkpoint_folders import OPTIMIZER_NAME
from retro.artifacts.checkpoint_folders import latest_checkpoint as latest_checkpoint
from retro.artifacts.checkpoint_folders import list_checkpoints as list_checkpoints
from retro.artifacts.fingerprint import fingerprint
from retro.artifacts.manifest import (
    Manifest,
    describe_file,
    open_manifest,
    verify_files,
    write_manifest,
)
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError
from retro.config.train import complete_result_fields
from retro.model.retro import RetroModel
from retro.model.weights import CONFIG_NAME, WEIGHTS_NAME, load_weights, save_model
from retro.train.state import TrainState

CHECKPOINT_KIND = "checkpoint"
STAGE, STAGE_VERSION = "train", 1
RNG_NAME, STATE_NAME = "rng.safetensors", "state.json"
_REMEDY = "move that checkpoint away to resume from the one before it, or restore the file"


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to: result-changing configuration, fingerprints of release and tokenizer, and of the
    weights that the run began with (None = random ones)."""

    config: dict[str, Any]
    release: str
    tokenizer: str
    init_from: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As stored in the manifest; lists instead of tuples, as JSON gives them back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


@dataclasses.dataclass(frozen=True)
class Resumed:
    """What a checkpoint holds besides the model and the optimizer.

    rng: uint8 [world, n] generator states by kind ("cpu", "cuda"); callbacks: their states by name.
    """

    state: TrainState
    rng: dict[str, Tensor]
    callbacks: dict[str, dict[str, Any]]


def save_checkpoint(
    folder: Path,
    *,
    model: RetroModel,
    optimizer: torch.optim.Optimizer,
    resumed: Resumed,
    identity: Identity,
    keep: int,
) -> Path:
    """Write the checkpoint of `resumed.state.step` below `folder`, then delete all but the newest `keep`.

    Returns its folder. A kill at any moment leaves the earlier checkpoints and possibly this one, whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    name = f"step_{resumed.state.step:06d}"
    final, temporary = folder / name, folder / f".{name}.tmp-{os.getpid()}"
    temporary.mkdir()
    settings = identity.config
    extra = {
        "tokenizer": {"fingerprint": identity.tokenizer},
        "release": {"fingerprint": identity.release},
        "sequence_length": settings["sequence_length"],
        "num_neighbors": settings["num_neighbors"],
        "packing": settings["packing"],
        "step": resumed.state.step,
    }
    save_model(temporary, model, extra)
    save_file(optimizer_tensors(model, optimizer), temporary / OPTIMIZER_NAME)
    save_file(resumed.rng, temporary / RNG_NAME)
    state = {"state": dataclasses.asdict(resumed.state), "callbacks": resumed.callbacks}
    write_json_atomic(temporary / STATE_NAME, state)
    names = (WEIGHTS_NAME, CONFIG_NAME, OPTIMIZER_NAME, RNG_NAME, STATE_NAME)
    for file in (OPTIMIZER_NAME, RNG_NAME):
        fsync_file(temporary / file)
    stored = identity.to_dict()
    write_manifest(
        temporary,
        Manifest(
            kind=CHECKPOINT_KIND,
            stage=STAGE,
            stage_version=STAGE_VERSION,
            fingerprint=fingerprint(STAGE, STAGE_VERSION, {**stored, "step": resumed.state.step}, {}),
            config=stored,
            inputs={},
            shards=[],
            files=[describe_file(temporary / file) for file in names],
            stats={"step": resumed.state.step, "samples": resumed.state.samples, "tokens": resumed.state.tokens},
        ),
    )
    fsync_directory(temporary)
    if final.exists():  # of the same step: unfinished, or made again after a later one was moved away
        _discard(final)
    os.replace(temporary, final)
    fsync_directory(folder)
    for _, old in list_checkpoints(folder)[:-keep]:
        _discard(old)
    return final


def check_identity(path: Path, identity: Identity) -> int:
    """The step of the checkpoint at `path`.

    Raises ArtifactMismatchError naming the fields in which it belongs to something else than `identity`, and
    ArtifactError subclasses if it cannot be opened.
    """
    manifest = _open(path)
    differences = describe_differences(_complete(manifest.config), _complete(identity.to_dict()))
    if differences:
        raise ArtifactMismatchError(
            f"{path}: belongs to another run than this configuration: {differences}; give the run another name=, or "
            "restore these values (a change of steps changes the whole learning-rate schedule, so it needs a new name)"
        )
    return int(manifest.stats["step"])


def _complete(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that the version which wrote the checkpoint did not have yet get their defaults; the weights that the run
    began with are called what people know them as."""
    config = complete_result_fields(identity.get("config", {}))
    rest = {name: value for name, value in identity.items() if name not in ("config", "init_from")}
    began = {"weights of init_from or retrofit.base": identity.get("init_from")}
    return json.loads(json.dumps({"config": config, **rest, **began}))


def load_checkpoint(path: Path, *, model: RetroModel, optimizer: torch.optim.Optimizer, identity: Identity) -> Resumed:
    """Fill `model` and `optimizer` from the checkpoint at `path` and return the rest.

    Raises ArtifactCorruptError naming the file (missing, truncated, altered) or ArtifactMismatchError naming the
    fields in which it belongs to something else than `identity`. Model and optimizer are then as they were, or partly
    filled only if a file with the right checksum does not fit.
    """
    check_identity(path, identity)
    problems = verify_files(path, _open(path))
    if problems:
        raise ArtifactCorruptError(f"{problems[0]}; {_REMEDY}")
    rng = _load_tensors(path / RNG_NAME)
    tensors = _load_tensors(path / OPTIMIZER_NAME)
    try:
        stored = json.loads((path / STATE_NAME).read_text(encoding="utf-8"))
        state, callbacks = TrainState(**stored["state"]), dict(stored["callbacks"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactCorruptError(f"{path / STATE_NAME}: not readable ({error}); {_REMEDY}") from None
    load_weights(path / WEIGHTS_NAME, model)
    fill_optimizer(path / OPTIMIZER_NAME, tensors, model, optimizer)
    return Resumed(state, rng, callbacks)


def _open(path: Path) -> Manifest:
    try:
        return open_manifest(path, CHECKPOINT_KIND)
    except ArtifactCorruptError as error:
        raise ArtifactCorruptError(f"{str(error).split(';')[0]}; {_REMEDY}") from None


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise ArtifactCorruptError(f"{path}: not a whole safetensors file ({line}); {_REMEDY}") from None


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State tensors of the optimizer on the CPU, named `<parameter>.<state>`.

    Raises TypeError for an optimizer whose state is not all tensors. Hyperparameters are not state: they come from the
    configuration.
    """
    out = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise TypeError(f"optimizer state {key!r} of {name}: expected a tensor, found {type(value).__name__}")
            out[f"{name}.{key}"] = value.detach().cpu().contiguous()
    return out


def fill_optimizer(
    path: Path, tensors: Mapping[str, Tensor], model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Inverse of `optimizer_tensors`. Raises ArtifactMismatchError for tensors of other parameters or shapes."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        name, _, key = full.rpartition(".")
        by_name.setdefault(name, {})[key] = tensor
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    unknown = sorted(by_name.keys() - parameters.keys()) + sorted(parameters.keys() - by_name.keys())
    if by_name and unknown:
        raise ArtifactMismatchError(f"{path}: state of other parameters than the model's, for instance {unknown[0]}")
    for name, state in by_name.items():
        for key, tensor in state.items():
            if tensor.ndim and tensor.shape != parameters[name].shape:
                raise ArtifactMismatchError(
                    f"{path}: {name}.{key}: expected shape {list(parameters[name].shape)}, found {list(tensor.shape)}"
                )
    skeleton = optimizer.state_dict()
    order = [p for group in optimizer.param_groups for p in group["params"]]
    names = {id(p): name for name, p in parameters.items()}
    numbers = [number for group in skeleton["param_groups"] for number in group["params"]]
    skeleton["state"] = {
        number: by_name[names[id(p)]] for number, p in zip(numbers, order, strict=True) if names[id(p)] in by_name
    }
    optimizer.load_state_dict(skeleton)


def describe_differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """The fields in which two nested mappings differ, in one line: `path: checkpoint X, now Y, ...`; empty if none."""
    old, new = _flatten(found), _flatten(expected)
    fields = [
        key for key in [*new, *(k for k in old if k not in new)] if old.get(key, _ABSENT) != new.get(key, _ABSENT)
    ]
    shown = [f"{key}: checkpoint {_show(old, key)}, now {_show(new, key)}" for key in fields[:6]]
    if len(fields) > 6:
        shown.append(f"and {len(fields) - 6} more")
    return ", ".join(shown)


_ABSENT = object()


def _show(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "absent"


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, item in value.items():
        # "config." says nothing to a user, who knows the fields as they stand in the file.
        full = f"{prefix}{key}" if not (prefix == "" and key == "config") else ""
        if isinstance(item, Mapping):
            out.update(_flatten(item, f"{full}." if full else ""))
        else:
            out[full] = item
    return out


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half written or half deleted. The caller holds the run's lock."""
    for path in folder.glob(".step_*.tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def _discard(path: Path) -> None:
    """Delete a checkpoint so that at no moment a finished one looks damaged."""
    hidden = path.with_name(f".{path.name}.tmp-discarded")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(path, hidden)
    shutil.rmtree(hidden)
