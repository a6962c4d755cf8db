"""The commit protocol of one shard, and the records that say which shards are committed.

A shard's files are written into a temporary folder, flushed, hashed and renamed into the output folder; then the record
`shards/<name>.json` (rows, bytes, checksums) is renamed into place. The record is the commit: after a kill at any
moment the next run keeps every shard that has a matching record and makes the rest again. Two processes that commit one
shard at the same time rename the same bytes, so the second changes nothing.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.execution.failures import name_disk
from data_prep.execution.liveness import new_owner
from data_prep.stage import Shard, Stage
from retro.artifacts.atomic import fsync_directory, fsync_file, write_json_atomic
from retro.artifacts.manifest import describe_file

RECORDS = "shards"
FINISH_RECORD = "_finish"
#: Temporaries and claims, below the output folder while it is being made.
WORK = ".work"
_TEMPORARY = "tmp-"


def temporary_name(owner: str, name: str) -> str:
    """A new name for a temporary folder of the shard `name`, made on behalf of the claimant `owner`."""
    return f"{_TEMPORARY}{owner}-{secrets.token_hex(4)}-{name}"


def parse_temporary(path: str) -> tuple[str, str] | None:
    """(owner, shard name) of a temporary folder's name, None if it is not one."""
    parts = path.removeprefix(_TEMPORARY).split("-", 2)
    return (parts[0], parts[2]) if path.startswith(_TEMPORARY) and len(parts) == 3 else None


def execute_shard(stage: Stage, folder: Path, shard: Shard, owner: str | None = None) -> dict[str, Any]:
    """Run and commit one shard; the record is returned. `owner`: the claimant on whose behalf (claims.py)."""

    def work(out: Path) -> tuple[int, dict[str, Any]]:
        result = stage.run_shard(shard, out)
        return result.rows, result.stats

    return commit(folder, shard.name, work, owner or new_owner())


def commit(folder: Path, name: str, work: Callable[[Path], tuple[int, dict[str, Any]]], owner: str) -> dict[str, Any]:
    """Call `work(empty folder)` -> (rows, stats), commit the files that it wrote and return the record.

    Does nothing if the shard is committed. If `work` fails while another process commits the same shard (which can be
    why it failed: what a stalled process has in hand is given to others), that commit counts.
    """
    record = read_record(folder, name)
    if record is not None:
        return record
    out = folder / WORK / temporary_name(owner, name)
    out.mkdir(parents=True)
    try:
        rows, stats = work(out)
        files = []
        for path in sorted(out.iterdir()):
            fsync_file(path)
            files.append(describe_file(path))
        for entry in files:
            os.replace(out / entry["name"], folder / entry["name"])
        fsync_directory(folder)
        record = {"name": name, "rows": int(rows), "files": files, "stats": stats}
        write_json_atomic(out / f"{name}.json", record)
        os.replace(out / f"{name}.json", folder / RECORDS / f"{name}.json")
        fsync_directory(folder / RECORDS)
    except Exception as error:
        record = read_record(folder, name)
        if record is None:
            raise name_disk(error, folder) from error.__cause__
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return record


def read_record(folder: Path, name: str) -> dict[str, Any] | None:
    """The shard's record if the shard is committed and its files have the recorded sizes, else None."""
    path = Path(folder) / RECORDS / f"{name}.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        for entry in record["files"]:
            if (Path(folder) / entry["name"]).stat().st_size != entry["bytes"]:
                return None
        return {key: record[key] for key in ("name", "rows", "files", "stats")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def recorded_names(folder: Path) -> set[str]:
    """Names of the shards that have a record; the files are not looked at."""
    try:
        names = {name.removesuffix(".json") for name in os.listdir(Path(folder) / RECORDS) if name.endswith(".json")}
    except FileNotFoundError:
        return set()
    return names - {FINISH_RECORD}


def shard_records(folder: Path) -> list[dict[str, Any]]:
    """Records of the shards committed so far in an output folder (finished or not), by name."""
    found = (read_record(folder, name) for name in sorted(recorded_names(folder)))
    return [record for record in found if record is not None]
