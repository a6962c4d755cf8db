"""Shards of finished artifacts under new numbers: hard links, copies where links are impossible."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_prep.base_artifact import link_or_copy
from data_prep.stage import Shard, ShardResult
from retro.artifacts.manifest import open_manifest


def renumber(file: str, old: str, new: str) -> str:
    """The file's name with the shard's name `old` in it replaced by `new`: tokens-00000.bin, documents-00000-00003."""
    renamed, count = re.subn(rf"(?<=-){re.escape(old)}(?=[-.])", lambda _: new, file, count=1)
    if count != 1:
        raise ValueError(f"{file}: does not name the shard {old}")
    return renamed


def shards_of(folders: Iterable[tuple[str, Path]]) -> list[Shard]:
    """The shards of several artifacts, one after the other, renumbered: spec {"input": name, "shard": name there}."""
    pairs = [(name, record["name"]) for name, folder in folders for record in open_manifest(folder).shards]
    return [Shard(f"{i:05d}", {"input": name, "shard": shard}) for i, (name, shard) in enumerate(pairs)]


def take_over(folder: Path, shard: Shard, out: Path, parts: tuple[str, ...] | None = None) -> ShardResult:
    """Link the files of the shard `shard.spec["shard"]` of `folder` into `out`, under the shard's new name.

    parts: only files whose names begin so. The figures of the shard are repeated.
    """
    record = find_shard(folder, shard.spec["shard"])
    for entry in record["files"]:
        name = str(entry["name"])
        if parts is None or name.split("-")[0] in parts:
            link_or_copy(folder / name, out / renumber(name, record["name"], shard.name))
    return ShardResult(int(record["rows"]), record["stats"])


def find_shard(folder: Path, name: str) -> dict[str, Any]:
    """The manifest's record of one shard."""
    return next(record for record in open_manifest(folder).shards if record["name"] == name)
