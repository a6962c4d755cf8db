"""Which documents of a release are to be removed: their places in each of its artifacts, by id."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from retro.artifacts.manifest import Manifest, open_manifest
from retro.artifacts.release import Release
from retro.config.errors import ArtifactMismatchError, ConfigError
from retro.data.document import DOCUMENTS_KIND, document_key, read_documents
from retro.data.token_store import TokenStore, open_token_store

_BLOCK = 1 << 20
_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Removal:
    """ids: of the documents that are there; documents: rows of the documents artifact by its shard; tokens: numbers by
    folder of a token store. Rows and numbers are int64, ascending; shards and stores without any are left out."""

    ids: frozenset[str]
    documents: dict[str, np.ndarray]
    tokens: dict[Path, np.ndarray]


def find_removal(release: Release, ids: Iterable[str], ignore_missing: bool = False) -> Removal:
    """Look the ids up. Raises ConfigError, naming them, for ids that the release does not have.

    ignore_missing: leave those out, as long as one is there.
    """
    wanted = set(ids)
    if not wanted:
        raise ConfigError("ids: expected at least one document id, found none")
    found: set[str] = set()
    stores: dict[Path, np.ndarray] = {}
    for folder in {release.database_tokens, *(split.tokens for split in release.splits.values())}:
        numbers, names = find_in_store(open_token_store(folder), wanted)
        found |= names
        if len(numbers):
            stores[folder] = numbers
    documents = {}
    for shard, rows, names in _find_in_documents(release.documents, wanted):
        found |= names
        if len(rows):
            documents[shard] = rows
    missing = sorted(wanted - found)
    if missing and not (ignore_missing and found):
        shown = ", ".join(map(repr, missing[:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
        raise ConfigError(
            f"{release.path}: has no document {shown} ({len(missing):,} of {len(wanted):,} ids)"
            f"{_hint(release, missing)}; nothing was removed; correct the ids, or leave those out with --ignore-missing"
        )
    return Removal(frozenset(found), documents, stores)


def find_in_store(store: TokenStore, wanted: set[str]) -> tuple[np.ndarray, set[str]]:
    """(numbers int64 ascending, ids) of the wanted documents that the store has."""
    keys = np.array(sorted(document_key(name) for name in wanted), dtype=np.uint64)
    numbers: list[int] = []
    names: set[str] = set()
    for first in range(0, store.num_documents, _BLOCK):
        block = store.document_keys[np.arange(first, min(first + _BLOCK, store.num_documents))]
        for number in (np.flatnonzero(np.isin(block, keys)) + first).tolist():
            name = store.document_record(number)["id"]
            if name in wanted:
                numbers.append(number)
                names.add(name)
    return np.array(numbers, dtype=np.int64), names


def removal_digest(*parts: np.ndarray) -> str:
    """What the configuration of a redacted artifact says of the removed ones: a hash of their places, never of ids."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.int64(len(part)).tobytes() + part.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _find_in_documents(folder: Path, wanted: set[str]) -> Iterator[tuple[str, np.ndarray, set[str]]]:
    """(shard, rows, ids) for every shard of a documents artifact, streamed."""
    manifest = open_manifest(folder, DOCUMENTS_KIND)
    if any(str(entry["name"]).startswith("documents-") for entry in manifest.files):
        raise ArtifactMismatchError(
            f"{folder}: was made by an older version of the stage {manifest.stage}, of which nothing can be removed; "
            "prepare the release again"
        )
    for record in manifest.shards:
        rows: list[int] = []
        names: set[str] = set()
        for row, name in enumerate(_ids(folder, manifest, record["name"])):
            if name in wanted:
                rows.append(row)
                names.add(name)
        yield record["name"], np.array(rows, dtype=np.int64), names


def _ids(folder: Path, manifest: Manifest, shard: str) -> Iterator[str]:
    files = [str(f["name"]) for record in manifest.shards if record["name"] == shard for f in record["files"]]
    if f"ids-{shard}.jsonl" in files:  # without unpacking the texts
        with open(folder / f"ids-{shard}.jsonl", encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines)
        return
    for name in sorted(file for file in files if file.startswith("documents-")):
        for document in read_documents(folder / name):
            yield document.id


def _hint(release: Release, missing: list[str]) -> str:
    """Where one was left out as a duplicate, its text is there under another id."""
    unknown = set(missing)
    for path in sorted(release.documents.glob("duplicates-*.jsonl")):
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                entry = json.loads(line)
                if entry["dropped"] in unknown:
                    return (
                        f"; {entry['dropped']!r} was left out as a duplicate of {entry['kept']!r}, which holds its text"
                    )
    return ""
