"""Writes a BM25 index artifact straight from token rows, without the stage."""

from pathlib import Path

import numpy as np

from retro.artifacts.manifest import Manifest, describe_file, write_manifest
from retro.config.loader import to_dict
from retro.config.prep_index import Bm25Config
from retro.retrieval import bm25
from retro.retrieval.bm25 import BM25Searcher
from tests.retrieval.memory_store import WordTokenizer


def bm25_index(folder: Path, segments: list[list[np.ndarray]], config: Bm25Config) -> BM25Searcher:
    """A searcher over an index whose segments hold the given chunks."""
    tokenizer = WordTokenizer()
    folder.mkdir()
    arrays = [bm25.segment_arrays([bm25.query_terms(rows, tokenizer, config)]) for rows in segments]  # type: ignore[arg-type]
    vocabulary, frequency = bm25.merge_vocabulary([(a["terms"], a["offsets"]) for a in arrays])
    np.save(folder / bm25.VOCABULARY, vocabulary)
    np.save(folder / bm25.DOCUMENT_FREQUENCY, frequency)
    chunks = sum(map(len, segments))
    average = sum(int(a["lengths"].sum()) for a in arrays) / chunks
    shards = []
    for number, (rows, parts) in enumerate(zip(segments, arrays, strict=True)):
        name = f"{number:05d}"
        parts["weights"] = bm25.segment_weights(parts, vocabulary, frequency, chunks, average, config)
        files = [bm25.segment_file(folder, part, name) for part in parts]
        for part, path in zip(parts, files, strict=True):
            np.save(path, parts[part])
        shards.append({"name": name, "rows": len(rows), "files": [describe_file(p) for p in files], "stats": {}})
    options = {"kind": "bm25", "bm25": to_dict(config)}
    write_manifest(folder, Manifest("index", "build_index", 1, "0" * 16, options, {}, shards, [], {}))
    return BM25Searcher(folder, tokenizer)  # type: ignore[arg-type]
