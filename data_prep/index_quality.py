"""How well an index finds: recall@k against exact search on a seeded sample, and the cheapest settings that do well."""

from __future__ import annotations

import dataclasses
import math
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

    queries float32 [n, d]; own int64 [n]; exact int64 [n, k], -1 = none.
    """

    queries: np.ndarray
    own: np.ndarray
    exact: np.ndarray

    @property
    def k(self) -> int:
        """Neighbors per query."""
        return int(self.exact.shape[1])


def draw_sample(vectors: VectorStore, metric: Metric, config: VectorIndexConfig) -> Sample:
    """The sample of a configuration: `recall_queries` vectors by `seed` and their exact neighbors.

    One pass over the embeddings by blocks: bounded memory, and less work than encoding them was.
    """
    generator = np.random.Generator(np.random.Philox(config.seed))
    own = draw_rows(generator, len(vectors), min(config.recall_queries, len(vectors)))
    queries = vectors.gather(own)
    _, found = ExactIndex(vectors, metric).search(queries, config.recall_at + 1)
    return Sample(queries, own, drop_self(found, own, config.recall_at))


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

    Probes (or efSearch) are doubled until the target is reached, and twice more: more lists with fewer candidates may
    cost less. Cheapest by what is read, codes and vectors, not by a clock: the same everywhere. Where the target is not
    reached: the fewest probes from where twice as many, and again twice, brought less than 0.002.
    """
    good: list[tuple[float, SearchSettings]] = []
    bests: list[tuple[float, SearchSettings]] = []
    steps = _steps(index, config)
    reached = len(steps)
    for number, step in enumerate(steps):
        found = [pair for settings in step for pair in _recalls(index, sample, config, settings)]
        good += [(_cost(index, chosen, sample), chosen) for recall, chosen in found if recall >= config.recall_target]
        bests.append(max(found, key=lambda pair: pair[0]))
        if good:
            reached = min(reached, number)
        if number == reached + 2 or (not good and number >= 6 and bests[-1][0] < bests[-3][0] + _GAIN):
            break
    if good:
        chosen = min(good, key=lambda pair: pair[0])[1]
    else:
        most = max(recall for recall, _ in bests)
        chosen = next(settings for recall, settings in bests if recall >= most - _GAIN)
    index.set(chosen)
    return chosen


def _steps(index: FaissIndex, config: VectorIndexConfig) -> list[list[SearchSettings]]:
    """Settings to try, each step more work than the one before."""
    given = [SearchSettings(config.probes, config.ef_search, config.k_factor)]
    if _refines(index) and config.k_factor is None:  # its k_factor changes what faiss itself returns
        given = [dataclasses.replace(settings, k_factor=factor) for settings in given for factor in K_FACTORS]
    lists = [inverted_lists(part.index) for part in index.parts]
    if any(part is not None for part in lists):
        if config.probes is not None:
            return [given]
        count = max(part.nlist for part in lists)
        doubling = [2**power for power in range(int(math.log2(count)) + 1)]
        return [[dataclasses.replace(settings, probes=n) for settings in given] for n in doubling]
    if any(is_graph(part.index) for part in index.parts) and config.ef_search is None:
        return [[dataclasses.replace(settings, ef_search=n) for settings in given] for n in EF_SEARCH]
    return [given]


def _recalls(
    index: FaissIndex, sample: Sample, config: VectorIndexConfig, settings: SearchSettings
) -> list[tuple[float, SearchSettings]]:
    index.set(settings)
    if _refines(index):
        return [(_due(measure_recall(index, sample)), settings)]
    factors = K_FACTORS if config.k_factor is None else (config.k_factor,)
    found = recall_by_factor(index, sample, factors)
    return [(_due(recall), dataclasses.replace(settings, k_factor=factor)) for factor, recall in found.items()]


def _cost(index: FaissIndex, settings: SearchSettings, sample: Sample) -> float:
    """Bytes of codes that a query compares, and those of the vectors of its candidates, read here and there and so
    counted five times."""
    ivf = inverted_lists(index.parts[0].index)
    scanned = 0.0
    if ivf is not None:
        scanned = (settings.probes or 1) * sum(map(len, index.parts)) / ivf.nlist * ivf.code_size
    elif settings.ef_search is not None:
        scanned = settings.ef_search * index.vectors.dimension * 4
    return scanned + 5 * (settings.k_factor or 1) * sample.k * index.vectors.dimension * 4


def _refines(index: FaissIndex) -> bool:
    return any(type(part.index).__name__.startswith("IndexRefine") for part in index.parts)


def _due(recall: float | None) -> float:
    """Where no neighbor was due, any setting does."""
    return 1.0 if recall is None else recall


def _number(recall: float) -> float | None:
    return None if math.isnan(recall) else recall
