"""Indexes of faiss, from any factory string. The only file that uses faiss (loaded by native.py, after torch).

faiss' distances depend in their last bits on threads and batching, and those of compressing indexes are approximate. So
faiss only proposes ids; their distances are computed exactly from the stored vectors and decide the order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from retro.config.errors import ArtifactCorruptError, ConfigError
from retro.config.prep_index import VectorIndexConfig
from retro.retrieval.embedder import Metric
from retro.retrieval.exact import rescore
from retro.retrieval.native import load_faiss
from retro.retrieval.vectors import VectorStore

_BLOCK = 65536


class FaissIndex:
    """Search a faiss index. Position p of the index is chunk `rows[p]` (zero vectors are not in the index)."""

    def __init__(
        self, index: Any, rows: np.ndarray, vectors: VectorStore, metric: Metric, config: VectorIndexConfig
    ) -> None:
        self._index, self._rows, self._vectors, self.metric = index, rows, vectors, metric
        _set_parameters(index, config)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(distances float32 [n, k] ascending, ids int64 [n, k]) of queries float32 [n, d]; ties ascend by id.

        -1 and inf where the lists or the graph that were looked at hold fewer than k, and for a zero query.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        real = np.flatnonzero((queries != 0).any(axis=1))
        if len(real) and len(self._rows):
            _, places = self._index.search(queries[real], k)
            ids[real] = np.where(places >= 0, self._rows[places], -1)
        return rescore(queries, ids, self._vectors, self.metric)


def build_faiss(
    vectors: VectorStore, metric: Metric, config: VectorIndexConfig
) -> tuple[Any, np.ndarray, dict[str, Any]]:
    """Train and fill an index: (index, chunk id of each position int64, figures for the manifest).

    Raises ConfigError for a factory string that faiss does not know or cannot train on the vectors at hand.
    """
    faiss = load_faiss()
    rows = np.concatenate(
        [np.flatnonzero((block != 0).any(axis=1)) + first for first, block in vectors.blocks(_BLOCK)]
        or [np.zeros(0, np.int64)]
    )
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    try:
        index = faiss.index_factory(vectors.dimension, config.factory, kind)
    except RuntimeError as error:
        raise ConfigError(
            f"factory {config.factory!r}: not a faiss factory string for vectors of {vectors.dimension} dimensions "
            f"({_reason(error)})"
        ) from None
    _set_parameters(index, config)  # refuses parameters that this index does not have, before the work
    sample = _training_rows(rows, config)
    stats: dict[str, Any] = {"vectors": len(rows), "zero_vectors": len(vectors) - len(rows)}
    if not index.is_trained:
        _check_training_size(index, len(sample), config)
        try:
            index.train(vectors.gather(sample))
        except RuntimeError as error:
            raise ConfigError(
                f"factory {config.factory!r}: cannot be trained on {len(sample)} vectors ({_reason(error)}); "
                "choose a smaller factory, or raise train_sample if there are more vectors"
            ) from None
        stats["training_vectors"] = len(sample)
    for start in range(0, len(rows), _BLOCK):
        index.add(vectors.gather(rows[start : start + _BLOCK]))
    return index, rows, stats


def write_faiss(index: Any, path: Path) -> None:
    """Write an index file."""
    load_faiss().write_index(index, str(path))


def read_faiss(path: Path) -> Any:
    """Read an index file by memory map where this faiss can map this kind of index, else into memory."""
    faiss = load_faiss()
    flags = getattr(faiss, "IO_FLAG_MMAP_IFC", faiss.IO_FLAG_MMAP) | faiss.IO_FLAG_READ_ONLY
    try:
        try:
            return faiss.read_index(str(path), flags)
        except RuntimeError:
            return faiss.read_index(str(path))
    except RuntimeError as error:
        raise ArtifactCorruptError(f"{path}: not a readable faiss index ({_reason(error)}); make it again") from None


def _training_rows(rows: np.ndarray, config: VectorIndexConfig) -> np.ndarray:
    """A uniform sample without replacement, ascending: not the first rows, which share topics."""
    if len(rows) <= config.train_sample:
        return rows
    generator = np.random.Generator(np.random.Philox(config.seed))
    return np.sort(generator.choice(rows, size=config.train_sample, replace=False, shuffle=False))


def _check_training_size(index: Any, sample: int, config: VectorIndexConfig) -> None:
    lists = _inverted_lists(index)
    if lists is not None and sample < lists.nlist:
        raise ConfigError(
            f"factory {config.factory!r}: {lists.nlist} centroids need at least as many training vectors (better "
            f"{39 * lists.nlist}), found {sample}; use fewer lists, or factory: exact"
        )


def _inverted_lists(index: Any) -> Any:
    faiss = load_faiss()
    try:
        return faiss.extract_index_ivf(index)
    except RuntimeError:
        return None


def _set_parameters(index: Any, config: VectorIndexConfig) -> None:
    """Set the search parameters that are not None. Raises ConfigError for ones that the index does not have."""
    faiss = load_faiss()
    space = faiss.ParameterSpace()
    for name, option, value in (("nprobe", "probes", config.probes), ("efSearch", "ef_search", config.ef_search)):
        if value is None:
            continue
        try:
            # efSearch of an IVF index is that of the graph which finds its lists
            if name == "efSearch" and _inverted_lists(index) is not None:
                space.set_index_parameter(index, "quantizer_efSearch", value)
            else:
                space.set_index_parameter(index, name, value)
        except RuntimeError:
            raise ConfigError(f"{option}: an index of factory {config.factory!r} has no {name}; remove it") from None


def _reason(error: RuntimeError) -> str:
    """The last sentence of faiss' message, without its C++ location."""
    text = str(error).strip().splitlines()[-1]
    return text.rsplit("Error: ", 1)[-1].removeprefix("'").rstrip("'")
