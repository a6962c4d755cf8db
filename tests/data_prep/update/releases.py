"""Tiny releases to update: a documentation corpus through the pipeline, with BM25 or vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.pipeline import run
from retro.artifacts.release import open_release
from retro.config.loader import from_dict
from retro.config.preparation import PrepConfig
from retro.data.chunk_store import ChunkStore, open_chunk_store
from tests.eval.workspace import documentation

CHUNK = 16
KEEP = 6
BM25: dict[str, Any] = {"kind": "bm25", "bm25": {"terms": "tokens", "shard_chunks": 100}}


def vectors(factory: str = "exact", **options: Any) -> dict[str, Any]:
    return {"kind": "vectors", "vectors": {"factory": factory, "recall_queries": 16, **options}}


def settings(root: Path, corpus: Path, index: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Fields of PrepConfig. A changed section replaces the one here."""
    fields: dict[str, Any] = {
        "root": str(root),
        "workers": 1,
        "ingest": {
            "reader": "jsonl",
            "jsonl": {"folder": str(corpus), "files": ["*.jsonl"], "id_field": "id", "title_field": "title"},
            "split": {"by": "field", "field": "split"},
        },
        "deduplicate": {"near": False},
        "tokenizer": {"train": {"vocab_size": 400}},
        "chunk": {"chunk_length": CHUNK, "shard_documents": 20},
        "index": index or BM25,
        "neighbors": {"candidates": 30, "keep": KEEP},
        "questions": {"max_answer_share": 0.5, "test_fraction": 0.3},
        "question_sequences": {"question_chunks": 5, "candidates": 20, "keep": 5},
    }
    if index is not None and index["kind"] == "vectors":
        fields["embed"] = {
            "kind": "lexical",
            "lexical": {"dimension": 32, "buckets": 1024},
            "shard_chunks": 100,
        }
    return {**fields, **changes}


def prepare(fields: dict[str, Any]) -> Path:
    """Run the pipeline; returns release.json."""
    return run(from_dict(PrepConfig, fields), progress=False)


def write_corpus(folder: Path, records: list[dict[str, str]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "docs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def records(count: int = 60, start: int = 0) -> list[dict[str, str]]:
    """Records start .. start + count - 1 of the documentation."""
    return documentation(start + count)[start:]


def release(root: Path, items: list[dict[str, str]], index: dict[str, Any] | None = None, **changes: Any) -> Path:
    return prepare(settings(root / "prep", write_corpus(root / "corpus", items), index, **changes))


def database(path: Path) -> ChunkStore:
    return open_chunk_store(open_release(path).database_chunks)


def chunk_names(store: ChunkStore, ids: np.ndarray) -> list[Any]:
    """(document id, offset in the document) of chunk ids of any shape, None for -1."""
    out = []
    for chunk in ids.reshape(-1).tolist():
        if chunk < 0:
            out.append(None)
            continue
        number = int(store.documents(np.array([chunk]))[0])
        start = int(store.starts(np.array([chunk]))[0])
        offset = start - int(store.tokens.document_offsets[number])
        out.append((store.tokens.document_record(number)["id"], offset))
    return out
