"""The end of a stage: the closing step and the manifest, made by one of the processes at work."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from data_prep.execution.claims import Claims
from data_prep.execution.failures import describe_error, failure_error, keep_trace
from data_prep.execution.loop import FIRST_PAUSE, LONGEST_PAUSE
from data_prep.execution.progress import Progress
from data_prep.execution.records import FINISH_RECORD, WORK, commit, temporary_name
from data_prep.stage import Stage
from retro.artifacts.atomic import fsync_directory
from retro.artifacts.manifest import MANIFEST_NAME, Manifest, open_manifest, write_manifest


def close_stage(
    stage: Stage, folder: Path, records: list[dict[str, Any]], claims: Claims, bar: Progress
) -> Manifest | None:
    """Run the closing step, commit it and write the manifest; None if another process did. Raises RetroError."""
    pause = FIRST_PAUSE
    waiting = False
    while not (folder / MANIFEST_NAME).exists():
        if claims.take(FINISH_RECORD):
            try:
                return None if (folder / MANIFEST_NAME).exists() else _close(stage, folder, records, claims)
            finally:
                claims.release(FINISH_RECORD)
        if not waiting and pause > 1:
            waiting = True
            bar.note(f"waiting for the closing step, which {claims.holder(FINISH_RECORD)} makes")
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE)
    return None


def _close(stage: Stage, folder: Path, records: list[dict[str, Any]], claims: Claims) -> Manifest:
    try:
        closing = commit(folder, FINISH_RECORD, lambda out: (0, stage.finish(folder, out, records)), claims.owner)
    except Exception as error:
        failure = describe_error(error)
        log = keep_trace(claims.work, FINISH_RECORD, failure)
        raise failure_error(stage.name, "closing step", failure, log=log) from None
    manifest = Manifest(
        kind=stage.kind,
        stage=stage.name,
        stage_version=stage.version,
        fingerprint=stage.fingerprint(),
        config=stage.config,
        inputs={name: _describe_input(folder, path) for name, path in sorted(stage.inputs.items())},
        shards=records,
        files=closing["files"],
        stats=closing["stats"],
    )
    # Written where a kill leaves nothing in the finished folder, renamed into place last.
    out = folder / WORK / temporary_name(claims.owner, FINISH_RECORD)
    out.mkdir()
    write_manifest(out, manifest)
    os.replace(out / MANIFEST_NAME, folder / MANIFEST_NAME)
    fsync_directory(folder)
    shutil.rmtree(out, ignore_errors=True)
    return manifest


def _describe_input(folder: Path, path: Path) -> dict[str, str]:
    manifest = open_manifest(path)
    relative = os.path.relpath(path.resolve(), folder.resolve())
    return {"kind": manifest.kind, "fingerprint": manifest.fingerprint, "path": relative}
