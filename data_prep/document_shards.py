"""Cuts a documents artifact into shards for the stages that read it: files together, or parts of a large file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.stage import Shard
from retro.artifacts.manifest import read_manifest
from retro.data.document import DOCUMENTS_KIND, Document, document_names, read_documents

# How large a shard is where the configuration does not say: a share of the corpus, within bounds.
_SHARDS, _LEAST, _MOST = 64, 1 << 20, 256 << 20
# Text and JSON are packed to about a third. Where that is wrong, the last part of a file is larger or smaller.
_PACKED = 3
# Every part unpacks what lies before it in its file, which is cheap, and not cheaper than a smaller part's work.
_SMALLEST_PART = 1 << 20


def document_shards(folder: Path, shard_bytes: int | None, whole_files: bool = False) -> list[Shard]:
    """Shards of about `shard_bytes` of stored documents, in the order of the artifact.

    A pure function of the sizes in the manifest. spec: {"parts": [[file name, start, stop], ...]} for `read_shard`.
    whole_files: a shard has whole files only.
    """
    manifest = read_manifest(folder, DOCUMENTS_KIND)
    sizes = {str(entry["name"]): int(entry["bytes"]) for entry in manifest.all_files()}
    names = document_names(manifest)
    size = shard_bytes or min(max(sum(sizes[name] for name in names) // _SHARDS, _LEAST), _MOST)
    groups: list[list[list[Any]]] = []
    room = 0
    for name in names:
        step = max(_PACKED * size, _SMALLEST_PART)
        count = max(1, _PACKED * sizes[name] // step) if sizes[name] > size and not whole_files else 1
        if count > 1:
            groups += [[[name, i * step, (i + 1) * step if i + 1 < count else None]] for i in range(count)]
            room = 0
            continue
        if room <= 0:
            groups.append([])
            room = size
        groups[-1].append([name, 0, None])
        room -= sizes[name]
    return [Shard(f"{i:05d}", {"parts": parts}) for i, parts in enumerate(groups)]


def read_shard(folder: Path, spec: dict[str, Any]) -> Iterator[Document]:
    """Documents of one shard of `document_shards`, streamed."""
    for name, start, stop in spec["parts"]:
        yield from read_documents(folder / name, start, stop)
