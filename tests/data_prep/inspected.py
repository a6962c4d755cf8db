"""A tiny finished preparation with an index over vectors, for the tests of what looks at preparations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from retro.artifacts.fingerprint import sha256_file
from retro.artifacts.manifest import Manifest, read_manifest
from retro.config.loader import from_dict
from retro.config.preparation import PrepConfig
from tests.data_prep.corpora import write_lines
from tests.data_prep.prepared import make_text


def write_corpus(folder: Path, count: int = 60, seed: int = 0) -> Path:
    """`count` documents in two files."""
    generator = np.random.default_rng(seed)
    records = [
        {
            "id": f"d{i}",
            "text": make_text(generator, int(generator.integers(5, 90))),
            "split": "test" if i % 6 == 5 else "train",
        }
        for i in range(count)
    ]
    for number in range(2):
        write_lines(folder / f"part-{number}.jsonl", records[number::2])
    return folder


def settings(corpus: Path, root: Path, **sections: Any) -> dict[str, Any]:
    """Fields of a preparation over the corpus; several shards where that costs nothing."""
    return {
        "root": str(root),
        "workers": 1,
        "ingest": {
            "reader": "jsonl",
            "jsonl": {"folder": str(corpus), "files": ["*.jsonl"], "id_field": "id"},
            "split": {"by": "field", "field": "split"},
        },
        "tokenizer": {"train": {"vocab_size": 320}},
        "chunk": {"chunk_length": 16},
        "query_splits": ["train", "test"],
        "embed": {"kind": "lexical", "lexical": {"dimension": 16, "buckets": 1024}, "shard_chunks": 40},
        "index": {"kind": "vectors", "vectors": {"factory": "IVF4,Flat", "recall_queries": 20}},
        "neighbors": {"candidates": 40, "keep": 6},
        **sections,
    }


def configure(values: dict[str, Any]) -> PrepConfig:
    """The configuration with these fields."""
    return from_dict(PrepConfig, values)


def folder_of(root: Path, stage: str, condition: Callable[[Manifest], bool] = lambda manifest: True) -> Path:
    """The only finished folder of a stage below `root`, or the only one that `condition` holds for."""
    found = [p for p in sorted(root.glob(f"{stage}-*")) if condition(read_manifest(p))]
    assert len(found) == 1, found
    return found[0]


def copy(source: Path, target: Path) -> Path:
    """A copy of a folder tree."""
    shutil.copytree(source, target)
    return target


def flip(path: Path, place: int = -1) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def rewrite(file: Path, array: np.ndarray) -> None:
    """Another content, recorded in manifest and records as if the stage had made it."""
    np.save(file, array)
    for path in [file.parent / "manifest.json", *(file.parent / "shards").glob("*.json")]:
        content = json.loads(path.read_text())
        for entry in [*content["files"], *(f for shard in content.get("shards", []) for f in shard["files"])]:
            if entry["name"] == file.name:
                entry.update(sha256=sha256_file(file), bytes=file.stat().st_size)
        path.write_text(json.dumps(content))
