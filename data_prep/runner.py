"""Carries out a stage: plan, shards, closing step, manifest. Killed at any moment and started again, or run by several
processes at once, it ends in the same bytes. The parts are in data_prep/execution/."""

from __future__ import annotations

import shutil
from pathlib import Path

from data_prep.execution.claims import Claims, clear_leftovers
from data_prep.execution.closing import close_stage
from data_prep.execution.executor import Executor
from data_prep.execution.failures import describe_error, failure_error, name_disk
from data_prep.execution.loop import run_shards
from data_prep.execution.progress import Progress
from data_prep.execution.records import FINISH_RECORD, RECORDS, execute_shard, shard_records
from data_prep.stage import Shard, Stage
from retro.artifacts.manifest import MANIFEST_NAME, open_manifest
from retro.config.errors import ArtifactError, ArtifactUnfinishedError

__all__ = ["RECORDS", "Executor", "execute_shard", "run_stage", "shard_records"]


def run_stage(stage: Stage, root: Path, executor: Executor | None = None, progress: bool = True) -> Path:
    """Make the stage's artifact below `root` and return its folder; return at once if it is finished.

    Killed at any moment and started again it continues after the last committed shard and ends in the same bytes.
    Other processes that run the same stage in the same root at the same time share the work.
    Raises RetroError subclasses for inputs or content that cannot be used; a failing shard is named in the error.
    """
    executor = executor or Executor()
    fingerprint = stage.fingerprint()
    folder = Path(root) / f"{stage.name}-{fingerprint}"
    if _finished(folder, stage, fingerprint):
        clear_leftovers(folder, executor.config.lease_seconds)
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with Claims(folder, executor.config.lease_seconds) as claims:
            claims.sweep()
            if not _finished(folder, stage, fingerprint):  # while we came in
                _run(stage, folder, executor, claims, progress)
    except OSError as error:
        raise failure_error(stage.name, "its output folder", describe_error(name_disk(error, folder))) from None
    return folder


def _run(stage: Stage, folder: Path, executor: Executor, claims: Claims, progress: bool) -> None:
    for path in folder.glob(".tmp-*"):  # of a run with a version before claims
        shutil.rmtree(path, ignore_errors=True)
    (folder / RECORDS).mkdir(exist_ok=True)
    try:
        shards = stage.plan()
    except OSError as error:
        raise failure_error(stage.name, "plan", describe_error(error)) from None
    _check_names(shards)
    bar = Progress(stage.name, len(shards), progress)
    records = run_shards(stage, folder, shards, executor, claims, bar)
    manifest = close_stage(stage, folder, records, claims, bar) or open_manifest(folder, stage.kind)
    bar.close(stage.summary(manifest.stats, manifest.rows))


def _finished(folder: Path, stage: Stage, fingerprint: str) -> bool:
    """Whether `folder` holds the finished artifact. One that is there but damaged is an error, never overwritten."""
    if not (folder / MANIFEST_NAME).exists():
        return False
    try:
        manifest = open_manifest(folder, stage.kind)
    except ArtifactUnfinishedError:
        return False
    if manifest.fingerprint != fingerprint:
        raise ArtifactError(f"{folder}: expected fingerprint {fingerprint}, found {manifest.fingerprint}; move it away")
    return True


def _check_names(shards: list[Shard]) -> None:
    names = [shard.name for shard in shards]
    if len(set(names)) != len(names) or FINISH_RECORD in names:
        raise ValueError(f"shard names must be unique and not {FINISH_RECORD!r}: {names[:5]}...")
