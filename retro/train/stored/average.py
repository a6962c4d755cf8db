"""The mean of the weights of several checkpoints (Izmailov et al. 2018, arXiv:1803.05407, section 3)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retro.artifacts.atomic import write_json_atomic
from retro.artifacts.byte_progress import ByteProgress
from retro.artifacts.checkpoint_folders import CHECKPOINTS, MODEL, list_checkpoints
from retro.artifacts.new_folder import new_folder
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ArtifactMissingError, ConfigError
from retro.config.loader import to_dict
from retro.model.pretrained import Pretrained, open_pretrained
from retro.model.tensor_bytes import Kind, metadata_of, write_file
from retro.model.tensor_files import TensorFiles, open_tensor_files
from retro.model.weights import CONFIG_NAME, WEIGHTS_NAME

#: Entries of config.json that the mean has if all checkpoints agree in them.
_SHARED = ("release", "sequence_length", "num_neighbors", "packing")


@dataclass(frozen=True)
class Source:
    """One of the checkpoints: where it lies, what its config.json says, its weights, its share in the mean."""

    found: Pretrained
    stored: dict[str, Any]
    tensors: TensorFiles
    weight: float

    def provenance(self) -> dict[str, Any]:
        """For the mean's config.json: run (None if it lies alone), folder, step, 16 digits over the weights, weight."""
        folder = self.found.folder.resolve()
        run = folder.parent.parent.name if folder.parent.name == CHECKPOINTS else None
        return {
            "run": run,
            "checkpoint": folder.name,
            "step": self.stored.get("step"),
            "fingerprint": self.found.fingerprint(),
            "weight": self.weight,
        }


@dataclass(frozen=True)
class Average:
    """folder: that was made; parameters: of the model; sources: what config.json says of them."""

    folder: Path
    parameters: int
    sources: list[dict[str, Any]]


def newest_checkpoints(run: str | Path, last: int) -> list[Path]:
    """The newest `last` finished checkpoints of a run, oldest first. Raises ArtifactMissingError if it has fewer."""
    found = [folder for _, folder in list_checkpoints(Path(run) / CHECKPOINTS)]
    if len(found) < last:
        raise ArtifactMissingError(
            f"{run}: expected {last} finished checkpoints or more, found {len(found)}; a run keeps keep_checkpoints of "
            "them, and last=NUMBER must not be more"
        )
    return found[-last:]


def average_checkpoints(
    paths: Sequence[str | Path], output: str | Path, weights: Sequence[float] = (), progress: bool = False
) -> Average:
    """Write the mean of the weights at `paths` into the new folder `output`, as `retro export format=retro` writes one
    model: added up in float64, stored in float32. config.json says in `average` what it was made of.

    weights: one for each path, divided by their sum; () = all alike. Checksums are compared. Memory: one tensor of each
    of two checkpoints. Raises ArtifactMismatchError for another model or tokenizer, other ArtifactError subclasses for
    what cannot be read or is not finite, and ConfigError (`output` exists or cannot be written, a path given twice).
    """
    shares = list(weights) or [1.0] * len(paths)
    total = math.fsum(shares)
    sources = [_open(path, share / total) for path, share in zip(paths, shares, strict=True)]
    _check_same(sources)
    for source in sources:
        source.found.check()
    first = sources[0]
    kinds: dict[str, Kind] = {name: (torch.float32, first.tensors.shape(name)) for name in first.tensors.names}
    provenance = [source.provenance() for source in sources]
    config = {"model": to_dict(first.found.config), "tokenizer": first.stored["tokenizer"]}
    config |= {
        name: first.stored[name]
        for name in _SHARED
        if all(name in s.stored and s.stored[name] == first.stored.get(name) for s in sources)
    }
    parameters = sum(math.prod(shape) for _, shape in kinds.values())
    bar = ByteProgress(f"writing {Path(output).name}", 4 * parameters, progress)
    try:
        with new_folder(output) as temporary:
            write_file(
                temporary / WEIGHTS_NAME, kinds, lambda name: _mean(sources, name), metadata_of(MODEL), bar.advance
            )
            write_json_atomic(temporary / CONFIG_NAME, {**config, "average": provenance})
    except OSError as error:
        raise ConfigError(
            f"output: {output}: cannot be written ({error.strerror or error}); make room, or choose another place"
        ) from None
    bar.close()
    return Average(Path(output), parameters, provenance)


def _open(path: str | Path, weight: float) -> Source:
    found = open_pretrained(path, "checkpoints")
    if found.is_huggingface:
        raise ArtifactMismatchError(
            f"checkpoints: {found.folder}: expected a run, checkpoint or exported model, found a Hugging Face folder; "
            "leave it out"
        )
    stored = json.loads((found.folder / CONFIG_NAME).read_text(encoding="utf-8"))
    return Source(found, stored, open_tensor_files(found.folder, MODEL), weight)


def _check_same(sources: Sequence[Source]) -> None:
    first = sources[0]
    expected = _tokenizer(first)
    seen: set[Path] = set()
    for source in sources:
        folder = source.found.folder
        if folder.resolve() in seen:
            raise ConfigError(f"checkpoints: {folder}: is given twice; weights=[...] says what counts how much")
        seen.add(folder.resolve())
        ours, theirs = to_dict(first.found.config), to_dict(source.found.config)
        fields = [name for name in ours if ours[name] != theirs[name]]
        if fields:
            raise ArtifactMismatchError(
                f"checkpoints: {folder}: expected the model of {first.found.folder}, found another {fields[0]} "
                f"({theirs[fields[0]]} instead of {ours[fields[0]]}); only checkpoints of one model have a mean"
            )
        found = _tokenizer(source)
        if found != expected:
            raise ArtifactMismatchError(
                f"checkpoints: {folder}: expected the tokenizer {expected} of {first.found.folder}, found {found}; "
                "only checkpoints of one tokenizer have a mean"
            )


def _tokenizer(source: Source) -> str:
    stored = source.stored.get("tokenizer")
    found = stored.get("fingerprint") if isinstance(stored, dict) else stored
    if not isinstance(found, str):
        raise ArtifactCorruptError(
            f"{source.found.folder / CONFIG_NAME}: names no tokenizer, so nobody knows whether the checkpoints belong "
            "together; leave it out"
        )
    return found


def _mean(sources: Sequence[Source], name: str) -> Tensor:
    total: Tensor | None = None
    for source in sources:
        stored = source.tensors.read(name)
        if not stored.is_floating_point():
            raise ArtifactMismatchError(
                f"{source.found.folder}: {name}: expected floating-point numbers, found {stored.dtype}; leave it out"
            )
        tensor = stored.to(torch.float64)
        if not tensor.sum().isfinite():
            raise ArtifactCorruptError(
                f"{source.found.folder}: {name} holds numbers that are not finite; leave that checkpoint out"
            )
        total = tensor.mul_(source.weight) if total is None else total.add_(tensor, alpha=source.weight)
    assert total is not None
    return total.to(torch.float32)
