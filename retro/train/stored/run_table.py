"""All checkpoints of a run: finished, damaged, unfinished."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retro.artifacts.checkpoint_folders import BEST, CHECKPOINTS, checkpoint_step, list_checkpoints
from retro.artifacts.manifest import MANIFEST_NAME
from retro.config.errors import ArtifactError
from retro.train.stored.describe import Description, describe_checkpoint


@dataclass(frozen=True)
class Row:
    """name: of the folder; status: "ok", "damaged" or "unfinished" (no manifest: nothing reads it); description: None
    where there is no readable manifest; problems: a line each."""

    name: str
    step: int
    status: str
    description: Description | None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunTable:
    """rows: by step; newest: name of the checkpoint that a run goes on from; best: that `best` points to; leftovers:
    hidden folders of a checkpoint that is being written, or whose writer was killed; problems: of the run itself."""

    folder: Path
    rows: list[Row]
    newest: str | None
    best: str | None
    leftovers: list[str]
    problems: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [
            {
                "name": row.name,
                "step": row.step,
                "status": row.status,
                "problems": list(row.problems),
                "description": None if row.description is None else row.description.to_dict(),
            }
            for row in self.rows
        ]
        return {**vars(self), "folder": str(self.folder), "rows": rows}


def describe_run(run: Path, verify: bool = False, advance: Callable[[int], None] = lambda count: None) -> RunTable:
    """Describe all checkpoints in the run folder `run` (see `describe_checkpoint`)."""
    folder = run / CHECKPOINTS
    found = [(checkpoint_step(path.name), path) for path in folder.iterdir() if not path.is_symlink()]
    rows = [_row(path, step, verify, advance) for step, path in sorted((s, p) for s, p in found if s is not None)]
    finished = list_checkpoints(folder)
    newest = finished[-1][1].name if finished else None
    link, best, problems = folder / BEST, None, []
    if link.is_symlink():
        best = Path(os.readlink(link)).name
        if best not in {path.name for _, path in finished}:
            problems.append(f"{link}: points to {best}, no finished checkpoint; the run mends it when it goes on")
    leftovers = sorted(path.name for path in folder.glob(".step_*.tmp-*"))
    return RunTable(run, rows, newest, best, leftovers, problems)


def _row(path: Path, step: int, verify: bool, advance: Callable[[int], None]) -> Row:
    if not (path / MANIFEST_NAME).is_file():
        problem = f"{path}: no {MANIFEST_NAME}, so it is unfinished and nothing reads it"
        return Row(path.name, step, "unfinished", None, (problem,))
    try:
        description = describe_checkpoint(path, verify, advance)
    except ArtifactError as error:
        return Row(path.name, step, "damaged", None, (str(error),))
    status = "damaged" if description.problems else "ok"
    return Row(path.name, step, status, description, tuple(description.problems))
