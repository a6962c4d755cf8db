"""The finished checkpoints of a run, `checkpoints/step_NNNNNN/`: folders with a manifest."""

from __future__ import annotations

import re
from pathlib import Path

from retro.artifacts.manifest import MANIFEST_NAME

CHECKPOINTS = "checkpoints"
OPTIMIZER_NAME = "optimizer.safetensors"
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
    return not (is_checkpoint or (folder / MANIFEST_NAME).exists() or (folder / OPTIMIZER_NAME).exists())


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest finished checkpoint, or None."""
    found = list_checkpoints(folder)
    return found[-1][1] if found else None
