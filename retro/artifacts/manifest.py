"""The manifest of an artifact folder: what it is, what made it, from what, and the size and checksum of every file.

The manifest is renamed into place last, so a folder that has one is finished. Opening checks what is cheap (every file
there, every size as recorded, every input where it was and with the fingerprint it had); `verify` reads all bytes.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from retro.artifacts.atomic import write_json_atomic
from retro.artifacts.fingerprint import sha256_file
from retro.config.errors import (
    ArtifactCorruptError,
    ArtifactMismatchError,
    ArtifactMissingError,
    ArtifactUnfinishedError,
)

MANIFEST_NAME = "manifest.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Content of manifest.json (docs/formats.md).

    kind: what the folder holds ("documents", "tokens", ...); stage, stage_version: the program that made it;
    config: the fields that change the result; inputs: name -> {kind, fingerprint, path relative to the folder};
    shards: per shard {name, rows, files: [{name, bytes, sha256}], stats}; files: files of the closing step;
    stats: figures for people and for later stages.
    """

    kind: str
    stage: str
    stage_version: int
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, dict[str, str]]
    shards: list[dict[str, Any]]
    files: list[dict[str, Any]]
    stats: dict[str, Any]
    format: int = FORMAT

    @property
    def rows(self) -> int:
        """Rows over all shards."""
        return sum(int(shard["rows"]) for shard in self.shards)

    def all_files(self) -> list[dict[str, Any]]:
        """Every recorded file: {name, bytes, sha256}, shards first."""
        return [f for shard in self.shards for f in shard["files"]] + list(self.files)


def describe_file(path: Path) -> dict[str, Any]:
    """The manifest's record of one file."""
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Finish the folder: write its manifest, atomically."""
    write_json_atomic(folder / MANIFEST_NAME, dataclasses.asdict(manifest))


def open_manifest(folder: str | Path, kind: str | None = None) -> Manifest:
    """Read and check the manifest of `folder`.

    Raises ArtifactMissingError, ArtifactUnfinishedError, ArtifactCorruptError (unreadable, a file missing or of another
    size) or ArtifactMismatchError (another kind or a newer format).
    """
    manifest = read_manifest(folder, kind)
    for entry in manifest.all_files():
        _check_file(Path(folder), entry["name"], int(entry["bytes"]))
    return manifest


def read_manifest(folder: str | Path, kind: str | None = None) -> Manifest:
    """As open_manifest, without a look at the files: to say everything that is wrong with them, not the first thing."""
    folder = Path(folder)
    what = kind or "artifact"
    if not folder.is_dir():
        raise ArtifactMissingError(f"{folder}: {what} not found; make it with `retro prep run`, or correct the path")
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ArtifactUnfinishedError(
            f"{folder}: no {MANIFEST_NAME}, so this {what} is unfinished; run what makes it again, it resumes"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] > FORMAT:
            raise ArtifactMismatchError(
                f"{path}: expected manifest format {FORMAT} or older, found {data['format']}; update this package"
            )
        manifest = Manifest(**{f.name: data[f.name] for f in dataclasses.fields(Manifest)})
        entries = [(str(f["name"]), int(f["bytes"]), str(f["sha256"])) for f in manifest.all_files()]
        _ = manifest.rows, [(i["kind"], i["fingerprint"], i["path"]) for i in manifest.inputs.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactCorruptError(
            f"{path}: not a readable manifest ({type(error).__name__}: {error}); "
            "restore the folder from a copy, or move it away and make it again"
        ) from None
    if kind is not None and manifest.kind != kind:
        raise ArtifactMismatchError(f"{folder}: expected an artifact of kind {kind!r}, found {manifest.kind!r}")
    for name, _, _ in entries:
        if Path(name).name != name:
            raise ArtifactCorruptError(f"{folder}/{MANIFEST_NAME}: file name {name!r} leaves the folder")
    return manifest


def _check_file(folder: Path, name: str, size: int) -> None:
    file = folder / name
    if not file.is_file():
        raise ArtifactCorruptError(f"{file}: recorded in the manifest but missing; restore it or make the folder again")
    found = file.stat().st_size
    if found != size:
        raise ArtifactCorruptError(
            f"{file}: expected {size} bytes, found {found}; restore it, or move the folder away and make it again"
        )


def verify_files(folder: str | Path, manifest: Manifest) -> list[str]:
    """Read every file and compare checksums; return one line per difference (empty = all good). Repairs nothing."""
    folder = Path(folder)
    problems = []
    for entry in manifest.all_files():
        file = folder / entry["name"]
        found = sha256_file(file) if file.is_file() else "missing"
        if found != entry["sha256"]:
            problems.append(f"{file}: expected sha256 {entry['sha256'][:16]}, found {found[:16]}")
    return problems


def input_path(folder: str | Path, manifest: Manifest, name: str) -> Path:
    """Folder of the input artifact `name`, checked to be the one that this artifact was made from.

    Raises ArtifactMismatchError if the artifact records no such input or another fingerprint is found there.
    """
    folder = Path(folder)
    if name not in manifest.inputs:
        raise ArtifactMismatchError(f"{folder}: records no input {name!r}; it has {sorted(manifest.inputs)}")
    entry = manifest.inputs[name]
    path = Path(os.path.normpath(folder / entry["path"]))
    found = open_manifest(path, entry["kind"])
    if found.fingerprint != entry["fingerprint"]:
        raise ArtifactMismatchError(
            f"{folder}: was made from {name} {entry['fingerprint']}, found {found.fingerprint} at {path}"
        )
    return path
