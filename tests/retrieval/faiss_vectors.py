"""Clustered vectors for tests of faiss indexes, and an index in one call."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retro.config.prep_index import VectorIndexConfig
from retro.retrieval.vectors import VectorStore

DIMENSION = 16


def clustered(n: int = 2000, d: int = DIMENSION) -> VectorStore:
    """n vectors around 30 centres in two shards; 5 and 90 are zero."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(30, d)) * 2
    vectors = (centres[generator.integers(0, 30, n)] + generator.normal(size=(n, d))).astype(np.float32)
    vectors[[5, 90]] = 0
    return VectorStore([vectors[: n // 3], vectors[n // 3 :]])


def build(store: VectorStore, config: VectorIndexConfig, folder: Path, metric: str = "l2", threads: int | None = None):
    """A FaissIndex over a file in `folder`, as the stages make it."""
    from retro.retrieval.faiss_index import FaissIndex, Part, SearchSettings, read_faiss, write_faiss
    from retro.retrieval.faiss_training import fill_index, train_index

    index = train_index(store, metric, config.factory, config).index  # type: ignore[arg-type]
    rows = fill_index(index, store, 0, len(store))
    write_faiss(index, folder / "index.faiss")
    settings = SearchSettings(config.probes, config.ef_search, config.k_factor)
    parts = [Part(read_faiss(folder / "index.faiss"), rows)]
    return FaissIndex(parts, store, metric, settings, config.factory, threads)  # type: ignore[arg-type]
