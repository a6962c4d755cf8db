"""Search in indexes of faiss, made from any factory string (loaded by native.py, after torch).

faiss proposes ids; their distances are computed exactly from the stored vectors and decide the order. What it proposes
for a query must not depend on the other queries or the threads, but its matrix products round differently from batch to
batch. So queries go to faiss in batches below the size from which it uses them (20), rotations before an index (OPQ)
are applied to batches of one fixed shape, and threads are ours: each runs whole batches, with one OpenMP thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from retro.config.errors import ArtifactCorruptError, ConfigError
from retro.retrieval.embedder import Metric
from retro.retrieval.exact import ExactIndex, rescore, sort_by_distance
from retro.retrieval.faiss_training import faiss_reason, inverted_lists
from retro.retrieval.native import load_faiss, usable_threads
from retro.retrieval.vectors import VectorStore

# Queries of one call of faiss where it would use matrix products, else of one piece of work of a thread.
_BATCH, _TASK = 16, 256
_LEAST_EF = 16
# The most candidates that faiss finds, and lists that it looks at, on a GPU; for more the index on the CPU is searched.
_GPU_LIMIT = 2048


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """probes, ef_search: of IVF and HNSW indexes, None = faiss' default (of the graph that finds the lists of an IVF
    index: twice the probes); k_factor: candidates per neighbor wanted."""

    probes: int | None = None
    ef_search: int | None = None
    k_factor: int | None = None


@dataclasses.dataclass(frozen=True)
class Part:
    """A faiss index of some of the chunks. rows: chunk id of each position int64, None where it gives ids itself."""

    index: Any
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return int(self.index.ntotal)


class FaissIndex:
    """Search the parts of an index. Zero vectors are in none, and retrieve nothing.

    threads: at most so many batches are searched at a time; None = OMP_NUM_THREADS, else the cores that this process
    may use. on_gpu: the parts are searched on the GPU (the same lists; distances are decided here all the same).
    """

    def __init__(
        self,
        parts: Sequence[Part],
        vectors: VectorStore,
        metric: Metric,
        settings: SearchSettings | None = None,
        factory: str = "",
        threads: int | None = None,
        on_gpu: bool = False,
    ) -> None:
        self.parts, self.vectors, self.metric = list(parts), vectors, metric
        self.factory = factory
        self.threads = 1 if on_gpu else threads or usable_threads()
        self._gpu = [to_gpu(part.index) for part in parts] if on_gpu else []
        self._pool: ThreadPoolExecutor | None = None
        self._by_pairs = all(_compares_pairs(part.index) for part in parts)
        self.set(settings or SearchSettings())

    def set(self, settings: SearchSettings) -> None:
        """Search with these settings from now on. Raises ConfigError for ones that the index does not have."""
        if settings.probes is None and self._lists():
            settings = dataclasses.replace(settings, probes=1)  # faiss' default, said so that it can be returned to
        self.settings = settings
        for part in self.parts:
            set_parameters(part.index, settings, self.factory)
        for index in self._gpu:
            set_parameters(index, settings, self.factory, gpu=True)
        refines = any(type(part.index).__name__.startswith("IndexRefine") for part in self.parts)
        self._fetch_factor = 1 if refines else settings.k_factor or 1

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(distances float32 [n, k] ascending, ids int64 [n, k]) of queries float32 [n, d]; ties ascend by id.

        -1 and inf where the lists or the graph that were looked at hold fewer than k, and for a zero query.
        """
        return self._run(queries, k, self._exact_batch)

    def search_wider(self, queries: np.ndarray, k: int, times: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """As `search`, probing `times` as many lists; and whether these are all lists.

        An index without lists (a graph) that has found too few is not asked again: the vectors are searched exactly.
        """
        lists = self._lists()
        if len(lists) < len(self.parts):
            return *ExactIndex(self.vectors, self.metric).search(queries, k), True
        usual, most = self.settings, max(lists, default=1)
        probes = min(most, (usual.probes or 1) * times)
        self.set(dataclasses.replace(usual, probes=probes))
        try:
            return *self.search(queries, k), probes == most
        finally:
            self.set(usual)

    def _lists(self) -> list[int]:
        """Number of lists of each part that has any."""
        return [found.nlist for part in self.parts if (found := inverted_lists(part.index)) is not None]

    def candidates(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `search`, in the order and with the distances of the index itself, which compares codes."""
        return self._run(queries, k, self._candidate_batch)

    def _run(self, queries: np.ndarray, k: int, batch: Any) -> tuple[np.ndarray, np.ndarray]:
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        distances = np.full((len(queries), k), np.inf, dtype=np.float32)
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        real = np.flatnonzero((queries != 0).any(axis=1))

        def work(start: int) -> None:
            for first in range(start, min(start + _TASK, len(real)), step):
                rows = real[first : min(first + step, start + _TASK)]
                distances[rows], ids[rows] = batch(queries[rows], k)

        step = _TASK if self._gpu or self._by_pairs else _BATCH
        # Also for one batch: threads of the pool have one OpenMP thread each, this one may have more.
        list(self._threads_pool().map(work, range(0, len(real), _TASK)))
        return distances, ids

    def _threads_pool(self) -> ThreadPoolExecutor:
        if self._pool is None:
            faiss = load_faiss()
            self._pool = ThreadPoolExecutor(self.threads, "faiss", lambda: faiss.omp_set_num_threads(1))
        return self._pool

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("an open index does not travel between processes: send the folder of its artifact")

    def _exact_batch(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        _, ids = self._candidate_batch(queries, k * self._fetch_factor)
        return rescore(queries, ids, self.vectors, self.metric, k)

    def _candidate_batch(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        found = [self._search_part(number, queries, k) for number in range(len(self.parts))]
        if len(found) == 1:
            return found[0]
        if not found:
            return np.full((len(queries), k), np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        return sort_by_distance(np.concatenate([d for d, _ in found], 1), np.concatenate([i for _, i in found], 1), k)

    def _search_part(self, number: int, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        part = self.parts[number]
        if len(part) == 0:
            return np.full((len(queries), k), np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        if self._gpu and max(k, self.settings.probes or 1) <= _GPU_LIMIT:
            distances, places = self._gpu[number].search(queries, k)
        else:
            index, queries = _rotated(part.index, queries)
            distances, places = index.search(queries, k)
        if self.metric == "ip":
            distances = -distances
        ids = places if part.rows is None else np.where(places >= 0, part.rows[places], -1)
        return np.where(ids >= 0, distances, np.float32(np.inf)), ids


def _compares_pairs(index: Any) -> bool:
    """Whether every distance is computed on its own, so that larger batches give the same: where a graph finds the
    lists, and in a graph. (Lists found by comparing all centroids are found by a matrix product in large batches.)"""
    faiss = load_faiss()
    lists = inverted_lists(index)
    if lists is not None:
        return hasattr(faiss.downcast_index(lists.quantizer), "hnsw") and "FastScan" not in type(lists).__name__
    return hasattr(faiss.downcast_index(index), "hnsw")


def _rotated(index: Any, queries: np.ndarray) -> tuple[Any, np.ndarray]:
    """The index behind the rotations (OPQ, PCA), and the queries rotated, in a batch of always the same shape."""
    faiss = load_faiss()
    index = faiss.downcast_index(index)
    if not isinstance(index, faiss.IndexPreTransform):
        return index, queries
    count = len(queries)
    padded = np.zeros((_BATCH * -(-count // _BATCH), queries.shape[1]), dtype=np.float32)
    padded[:count] = queries
    blocks = []
    for start in range(0, len(padded), _BATCH):
        block = padded[start : start + _BATCH]
        for number in range(index.chain.size()):
            block = faiss.downcast_VectorTransform(index.chain.at(number)).apply(block)
        blocks.append(block)
    return faiss.downcast_index(index.index), np.concatenate(blocks)[:count]


def set_parameters(index: Any, settings: SearchSettings, factory: str, gpu: bool = False) -> None:
    """Set the search parameters that are not None. Raises ConfigError for ones that the index does not have."""
    faiss = load_faiss()
    space = faiss.GpuParameterSpace() if gpu else faiss.ParameterSpace()
    values = (("nprobe", "probes", settings.probes), ("efSearch", "ef_search", settings.ef_search))
    for name, option, value in values:
        if value is None or (gpu and name == "efSearch"):  # on a GPU the lists are found exactly, without a graph
            continue
        try:
            # efSearch of an IVF index is that of the graph which finds its lists
            lists = None if gpu else inverted_lists(index)
            if name == "efSearch" and lists is not None:
                space.set_index_parameter(index, "quantizer_efSearch", value)
            else:
                space.set_index_parameter(index, name, value)
        except RuntimeError:
            raise ConfigError(f"{option}: an index of factory {factory!r} has no {name}; remove it") from None
    if not gpu and settings.probes is not None and settings.ef_search is None:
        coarse = getattr(inverted_lists(index), "quantizer", None)
        quantizer: Any = None if coarse is None else faiss.downcast_index(coarse)
        if hasattr(quantizer, "hnsw"):
            # a graph that is asked for as many as it looks at misses many of the nearest lists
            quantizer.hnsw.efSearch = max(_LEAST_EF, 2 * settings.probes)
    if settings.k_factor is not None and not gpu and type(index).__name__.startswith("IndexRefine"):
        index.k_factor = float(settings.k_factor)


def to_gpu(index: Any) -> Any:
    """A copy of a faiss index on the first GPU. Raises ConfigError for an index that faiss has no GPU form of."""
    faiss = load_faiss()
    try:
        options = faiss.GpuClonerOptions()
        options.allowCpuCoarseQuantizer = True  # a graph that finds the lists stays on the CPU
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index, options)
    except RuntimeError as error:
        raise ConfigError(
            f"device: faiss cannot search this index on a GPU ({faiss_reason(error)}); set device: cpu"
        ) from None


def write_faiss(index: Any, path: Path) -> None:
    """Write an index file."""
    load_faiss().write_index(index, str(path))


def read_faiss(path: Path, into_memory: bool = False) -> Any:
    """Read an index file by memory map where this faiss can map this kind of index, else into memory."""
    faiss = load_faiss()
    flags = getattr(faiss, "IO_FLAG_MMAP_IFC", faiss.IO_FLAG_MMAP) | faiss.IO_FLAG_READ_ONLY
    try:
        if not into_memory:
            try:
                return faiss.read_index(str(path), flags)
            except RuntimeError:
                pass
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise ArtifactCorruptError(
            f"{path}: not a readable faiss index ({faiss_reason(error)}); make it again"
        ) from None
