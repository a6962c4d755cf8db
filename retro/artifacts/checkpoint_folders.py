"""The finished checkpoints of a run, `checkpoints/step_NNNNNN/`: folders with a manifest."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from retro.artifacts.fingerprint import sha256_file
from retro.artifacts.manifest import MANIFEST_NAME, Manifest
from retro.config.errors import ArtifactCorruptError

CHECKPOINTS = "checkpoints"
CHECKPOINT_KIND = "checkpoint"  # of its manifest
BEST = "best"  # link beside the checkpoints
MODEL, OPTIMIZER = "model", "optimizer"  # the tensor sets of a checkpoint
RNG_NAME, STATE_NAME = "rng.safetensors", "state.json"  # generator states; position and callbacks
_STEP = re.compile(r"step_(\d+)")


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of all finished checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = ((checkpoint_step(path.name), path) for path in folder.iterdir())
    return sorted((step, path) for step, path in found if step is not None and (path / MANIFEST_NAME).is_file())


def checkpoint_step(name: str) -> int | None:
    """The step in the name of a checkpoint's folder, None for another name."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def is_saved_model(folder: Path) -> bool:
    """Whether `folder` is no checkpoint, which a training run could go on from, but a model by itself: without
    manifest and optimizer's state, and not among the checkpoints of a run."""
    is_checkpoint = folder.resolve().parent.name == CHECKPOINTS
    return not (is_checkpoint or (folder / MANIFEST_NAME).exists() or has_tensors(folder, OPTIMIZER))


def has_tensors(folder: Path, stem: str) -> bool:
    """Whether the tensor set `stem` is there, in one file or in several with an index."""
    return (folder / f"{stem}.safetensors").is_file() or (folder / f"{stem}.index.json").is_file()


def find_checkpoint(path: Path) -> Path | None:
    """The folder that `path` stands for: of a run its newest finished checkpoint, None if it has none; of a link such
    as `checkpoints/best` what it points to now, so that nobody reads two checkpoints; else `path`."""
    if (path / CHECKPOINTS).is_dir():
        return latest_checkpoint(path / CHECKPOINTS)
    return path.resolve() if path.is_symlink() else path


def compare_checksums(folder: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Read the files and compare them with what the manifest of `folder` records.

    Raises ArtifactCorruptError for the first that is another, or that it does not record.
    """
    recorded = {entry["name"]: str(entry["sha256"]) for entry in manifest.all_files()}
    for name in names:
        found = sha256_file(folder / name) if name in recorded else "no record of it"
        if recorded.get(name) != found:
            raise ArtifactCorruptError(
                f"{folder / name}: expected sha256 {recorded.get(name, 'in the manifest')[:16]}, found {found[:16]}; "
                "use another checkpoint"
            )


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest finished checkpoint, or None."""
    found = list_checkpoints(folder)
    return found[-1][1] if found else None
