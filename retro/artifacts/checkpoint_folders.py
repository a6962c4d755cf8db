"""The finished checkpoints of a run, `checkpoints/step_NNNNNN/`: folders with a manifest."""

from __future__ import annotations

import re
from pathlib import Path

from retro.artifacts.manifest import MANIFEST_NAME

CHECKPOINTS = "checkpoints"
_STEP = re.compile(r"step_(\d+)")


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of all finished checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), path) for path in folder.iterdir() if (m := _STEP.fullmatch(path.name))]
    return sorted((step, path) for step, path in found if (path / MANIFEST_NAME).is_file())


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest finished checkpoint, or None."""
    found = list_checkpoints(folder)
    return found[-1][1] if found else None
