"""How well an index finds: recall@k against exact search on a seeded sample, and the cheapest settings that do well."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from retro.config.prep_index import VectorIndexConfig
from retro.retrieval.embedder import Metric
from retro.retrieval.exact import ExactIndex
from retro.retrieval.faiss_index import FaissIndex, SearchSettings
from retro.retrieval.faiss_training import draw_rows, inverted_lists, is_graph
from retro.retrieval.recall import drop_self, recall_at_k
from retro.retrieval.vectors import VectorStore

K_FACTORS = (1, 2, 4, 8, 16)
EF_SEARCH = (16, 32, 64, 128, 256, 512, 1024)
# Twice as many probes that bring less than this are not worth their time.
_GAIN = 0.002


@dataclasses.dataclass(frozen=True)
class Sample:
    """Vectors of the database as queries, each without itself.

    queries float32 [n, d]; own int64 [n]; exact int64 [n, k], -1 = none; among: the chunks that exact neighbors were
    looked for in (ascending), None = all.
    """

    queries: np.ndarray
    own: np.ndarray
    exact: np.ndarray
    among: np.ndarray | None

    @property
    def k(self) -> int:
        """Neighbors per query."""
        return int(self.exact.shape[1])


class _Rows:
    """Some rows of a store, read in blocks: what ExactIndex reads of a VectorStore."""

    def __init__(self, vectors: VectorStore, ids: np.ndarray) -> None:
        self._vectors, self._ids = vectors, ids

    def __len__(self) -> int:
        return len(self._ids)

    def gather(self, ids: np.ndarray) -> np.ndarray:
        return self._vectors.gather(self._ids[ids])

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        for first in range(0, len(self._ids), size):
            yield first, self._vectors.gather(self._ids[first : first + size])


def draw_sample(vectors: VectorStore, metric: Metric, config: VectorIndexConfig) -> Sample:
    """The sample of a configuration: `recall_queries` vectors by `seed` and their exact neighbors.

    In a database of more than `recall_rows` vectors the exact neighbors are those among a sample of so many, and the
    index is asked for none but these: time and memory stay bounded, and as the neighbors of a sample lie further away,
    the recall is a low estimate.
    """
    generator = np.random.Generator(np.random.Philox(config.seed))
    size = min(config.recall_queries, len(vectors))
    own = draw_rows(generator, len(vectors), size)
    queries = vectors.gather(own)
    if len(vectors) <= config.recall_rows:
        _, found = ExactIndex(vectors, metric).search(queries, config.recall_at + 1)
        return Sample(queries, own, drop_self(found, own, config.recall_at), None)
    among = draw_rows(generator, len(vectors), config.recall_rows)
    _, places = ExactIndex(_Rows(vectors, among), metric).search(queries, config.recall_at + 1)  # type: ignore[arg-type]
    found = np.where(places >= 0, among[places], -1)
    return Sample(queries, own, drop_self(found, own, config.recall_at), among)


def measure_recall(index: Any, sample: Sample) -> float | None:
    """recall@k of an index on the sample; None where no neighbor was due."""
    _, found = index.search(sample.queries, sample.k + 1)
    return _number(recall_at_k(drop_self(found, sample.own, sample.k), sample.exact))


def recall_by_factor(index: FaissIndex, sample: Sample, factors: tuple[int, ...]) -> dict[int, float | None]:
    """recall@k for each k_factor at the present settings, from one search: exact distances order what is found, so a
    true neighbor among the candidates is always returned."""
    width = sample.k + 1
    _, found = index.candidates(sample.queries, width * max(factors))
    return {
        f: _number(recall_at_k(drop_self(found[:, : width * f], sample.own, width * f), sample.exact)) for f in factors
    }


def choose_settings(index: FaissIndex, sample: Sample, config: VectorIndexConfig) -> SearchSettings:
    """The configured settings, and for those that are None the cheapest with a recall of `recall_target`.

    Fewest probes (ef_search) first, then the smallest k_factor. Where none reaches the target: the fewest probes within
    0.002 of the best.
    """
    lists = max((part.index and inverted_lists(part.index) is not None for part in index.parts), default=False)
    graph = not lists and any(is_graph(part.index) for part in index.parts)
    refines = any(type(part.index).__name__.startswith("IndexRefine") for part in index.parts)
    factors = (config.k_factor,) if config.k_factor is not None else K_FACTORS
    if refines:  # its k_factor belongs to faiss and changes what is found
        factors = (1,)
    best: tuple[float, SearchSettings] | None = None
    for settings in _settings(index, config, lists, graph):
        index.set(settings)
        for factor, recall in recall_by_factor(index, sample, factors).items():
            chosen = dataclasses.replace(settings, k_factor=config.k_factor if refines else factor)
            if recall is None or recall >= config.recall_target:
                index.set(chosen)
                return chosen
            if best is None or recall > best[0] + _GAIN:
                best = recall, chosen
    assert best is not None
    index.set(best[1])
    return best[1]


def _settings(index: FaissIndex, config: VectorIndexConfig, lists: bool, graph: bool) -> Iterator[SearchSettings]:
    given = SearchSettings(config.probes, config.ef_search, config.k_factor)
    if lists and config.probes is None:
        count = max(inverted_lists(part.index).nlist for part in index.parts)
        for power in range(int(math.log2(count)) + 1):
            yield dataclasses.replace(given, probes=2**power)
    elif graph and config.ef_search is None:
        for value in EF_SEARCH:
            yield dataclasses.replace(given, ef_search=value)
    else:
        yield given


def _number(recall: float) -> float | None:
    return None if math.isnan(recall) else recall
