"""`retro prep status`: what is done, how far the rest is, what it takes on disk. Nothing is changed."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.inspection.claims import Claim, read_claims
from data_prep.inspection.disk import Disk, UnusedFolder, folder_bytes, read_disk, unused_folders
from data_prep.inspection.figures import figures
from data_prep.inspection.forecast import Forecast, forecast
from data_prep.inspection.progress import Progress, read_progress
from data_prep.pipeline import Step, iter_folders, steps
from data_prep.stage import Stage
from retro.artifacts.manifest import MANIFEST_NAME, open_manifest, read_manifest
from retro.config.errors import RetroError
from retro.config.preparation import PrepConfig


@dataclass(frozen=True)
class StepStatus:
    """state: done | damaged | resumable | missing | waiting (its inputs are not finished); detail: one line; bytes: on
    disk, temporary files included; rows; progress, claims: of a resumable stage; figures: further lines for people
    (recall of an index, coverage of neighbors)."""

    step: str
    state: str
    folder: Path | None
    detail: str
    bytes: int = 0
    rows: int = 0
    progress: Progress | None = None
    claims: list[Claim] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Status:
    """Of a configuration: its steps; the disk; bytes and seconds to come (None: cannot be told yet); folders below the
    root that no step uses (None: not told, because a damaged step hides what comes after it)."""

    root: Path
    steps: list[StepStatus]
    disk: Disk
    rest: Forecast
    unused: list[UnusedFolder] | None

    @property
    def damaged(self) -> bool:
        """Whether a finished step cannot be used."""
        return any(step.state == "damaged" for step in self.steps)

    @property
    def too_large(self) -> bool:
        """Whether what is to come needs more than the file system has free."""
        return self.disk.free is not None and (self.rest.bytes or 0) > self.disk.free


def status(config: PrepConfig) -> Status:
    """State of every step of the configuration."""
    found: list[StepStatus] = []
    used: list[Path] = []
    for step, stage, folder in iter_folders(config):
        found.append(status_of(step, stage, folder))
        used.append(folder)
        if found[-1].state == "damaged":
            break
    for step in steps(config)[len(found) :]:
        found.append(StepStatus(step.name, "waiting", None, "its inputs are not finished"))
    root = Path(config.root)
    damaged = found and any(item.state == "damaged" for item in found)
    return Status(
        root=root,
        steps=found,
        disk=read_disk(root),
        rest=forecast(config, found),
        unused=None if damaged else unused_folders(root, _with_inputs(used)),
    )


def status_of(step: Step, stage: Stage, folder: Path) -> StepStatus:
    """State of one step whose inputs are finished."""
    if (folder / MANIFEST_NAME).is_file():
        try:
            manifest = open_manifest(folder, stage.kind)
        except RetroError as error:
            return StepStatus(step.name, "damaged", folder, str(error), folder_bytes(folder))
        summary = stage.summary(manifest.stats, manifest.rows)
        size = sum(int(f["bytes"]) for f in manifest.all_files())
        return StepStatus(
            step.name, "done", folder, summary, size, manifest.rows, figures=figures(manifest.kind, manifest.stats)
        )
    total = len(stage.plan())
    if folder.is_dir():
        progress = read_progress(folder, total)
        return StepStatus(
            step.name,
            "resumable",
            folder,
            f"{progress.shards} of {total} shards done",
            folder_bytes(folder),
            progress.rows,
            progress,
            read_claims(folder),
        )
    return StepStatus(step.name, "missing", folder, f"{total} shards to do")


def to_json(found: Status) -> dict[str, Any]:
    """For machines: plain types only, paths as text."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, list):
            return [plain(item) for item in value]
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        return str(value) if isinstance(value, Path) else value

    content: dict[str, Any] = plain(found)
    return {**content, "damaged": found.damaged, "too_large": found.too_large}


def _with_inputs(folders: list[Path]) -> set[Path]:
    """The folders and everything that they were made from, wherever it lies (an updated database uses its base's)."""
    known: set[Path] = set()
    waiting = [Path(folder).resolve() for folder in folders]
    while waiting:
        folder = waiting.pop()
        if folder in known:
            continue
        known.add(folder)
        try:
            inputs = read_manifest(folder).inputs
        except RetroError:
            continue
        waiting += [Path(os.path.normpath(folder / entry["path"])) for entry in inputs.values()]
    return known
