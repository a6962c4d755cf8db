"""Measures what an index's search settings cost and bring: recall@k against exact search, time per query, size."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_prep.index_quality import EF_SEARCH, K_FACTORS, draw_sample, measure_recall
from data_prep.pipeline import iter_folders
from data_prep.train_index import vector_metric
from retro.artifacts.manifest import MANIFEST_NAME, input_path, open_manifest
from retro.config.errors import ArtifactMissingError, ConfigError
from retro.config.loader import from_dict
from retro.config.prep_index import VectorIndexConfig
from retro.config.preparation import PrepConfig
from retro.retrieval.faiss_index import SearchSettings
from retro.retrieval.faiss_training import inverted_lists, is_graph
from retro.retrieval.vector_searcher import FAISS_FILE, open_parts
from retro.retrieval.vectors import EMBEDDINGS_KIND, open_vectors

TARGET = 0.95
# A sweep without given values ends where twice the work brings less.
_GAIN = 0.001


@dataclasses.dataclass(frozen=True)
class Sweep:
    """queries: vectors measured on; at: k of recall@k; probes, ef_search, k_factor: values tried, None = a doubling
    series until nothing is gained; repeats: timed runs of each setting; target: recall that is asked for."""

    queries: int = 512
    at: int = 10
    probes: tuple[int, ...] | None = None
    ef_search: tuple[int, ...] | None = None
    k_factor: tuple[int, ...] | None = None
    repeats: int = 5
    target: float = TARGET

    def __post_init__(self) -> None:
        for name in ("queries", "at", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name}: expected 1 or more, found {getattr(self, name)}")
        for name in ("probes", "ef_search", "k_factor"):
            values = getattr(self, name)
            if values is not None and (not values or min(values) < 1):
                raise ConfigError(f"--{name.replace('_', '-')}: expected numbers of 1 or more, found {values}")


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting: recall@k; milliseconds per query (all threads; median, least and most of the repeats); frontier: no
    other setting finds as much in less time."""

    settings: SearchSettings
    recall: float
    milliseconds: float
    fastest: float
    slowest: float
    frontier: bool = False


@dataclasses.dataclass(frozen=True)
class Frontier:
    """points in the order tried; cheapest: the fastest with a recall of `target`, None where there is none; memory and
    disk: bytes per vector of the index, and with the embeddings that decide; current: the manifest's settings."""

    factory: str
    vectors: int
    threads: int
    sweep: Sweep
    points: tuple[Point, ...]
    cheapest: Point | None
    memory_per_vector: float
    disk_per_vector: float
    current: SearchSettings


def finished_index(config: PrepConfig) -> Path:
    """Folder of the finished vector index of a configuration. Raises ArtifactMissingError, ConfigError."""
    if config.index.kind != "vectors":
        raise ConfigError("tune-index: the index is BM25, which has no search settings; it is exact")
    for step, stage, folder in iter_folders(config):
        if step.name == "build_index" and (folder / MANIFEST_NAME).is_file():
            if open_manifest(folder, stage.kind).stats["factory"] == "exact":
                raise ConfigError(f"tune-index: {folder.name} is searched exactly; there is nothing to tune")
            return folder
    raise ArtifactMissingError(f"{config.root}: no finished index; make it with `retro prep run`, then tune it")


def tune(folder: Path, sweep: Sweep, progress: Callable[[Point], object] | None = None) -> Frontier:
    """Measure every setting of the sweep on a finished index. Raises ConfigError for settings that it does not have."""
    manifest = open_manifest(folder)
    embeddings = input_path(folder, manifest, EMBEDDINGS_KIND)
    vectors, metric = open_vectors(embeddings), vector_metric(embeddings)
    names = [part["name"] for part in manifest.stats["parts"]]
    current = SearchSettings(**manifest.stats["search"])
    index = open_parts(folder, names, vectors, metric, current, manifest.stats["factory"])
    config = from_dict(VectorIndexConfig, manifest.config["vectors"], str(folder))
    config = dataclasses.replace(config, recall_queries=sweep.queries, recall_at=sweep.at)
    sample = draw_sample(vectors, metric, config)
    if measure_recall(index, sample) is None:
        raise ConfigError(f"tune-index: no query among {len(vectors)} vectors has a neighbor; the index is too small")
    points: list[Point] = []
    for option, series in _series(index, sweep):
        before = -math.inf
        for values in series:
            best = before
            for settings in values:
                index.set(settings)
                recall = measure_recall(index, sample)
                times = [_timed(index, sample.queries, sweep.at) for _ in range(sweep.repeats)]
                point = Point(settings, recall or 0.0, statistics.median(times), min(times), max(times))
                points.append(point)
                best = max(best, point.recall)
                if progress is not None:
                    progress(point)
            if option and best < before + _GAIN:
                break
            before = best
    stored = len(vectors) - int(manifest.stats["zero_vectors"])
    size = sum((folder / FAISS_FILE.format(name)).stat().st_size for name in names) / max(stored, 1)
    row = vectors.dimension * (vectors.shards[0].itemsize if vectors.shards else 4)
    marked = mark_frontier(points)
    return Frontier(
        manifest.stats["factory"],
        stored,
        index.threads,
        sweep,
        marked,
        cheapest(marked, sweep.target),
        size,
        size + row,
        current,
    )


def mark_frontier(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points, those marked that no other one beats: as much recall in less time, or more in as much."""

    def beaten(point: Point) -> bool:
        return any(
            other.recall >= point.recall
            and other.milliseconds <= point.milliseconds
            and (other.recall, -other.milliseconds) != (point.recall, -point.milliseconds)
            for other in points
        )

    return tuple(dataclasses.replace(point, frontier=not beaten(point)) for point in points)


def cheapest(points: Sequence[Point], target: float) -> Point | None:
    """The fastest point with at least this recall."""
    good = [point for point in points if point.recall >= target]
    return min(good, key=lambda point: point.milliseconds) if good else None


def to_json(found: Frontier) -> dict[str, Any]:
    """For tune_index.json."""
    return dataclasses.asdict(found)


def _timed(index: Any, queries: Any, k: int) -> float:
    started = time.perf_counter()
    index.search(queries, k)
    return (time.perf_counter() - started) / len(queries) * 1e3


def _series(index: Any, sweep: Sweep) -> list[tuple[bool, list[list[SearchSettings]]]]:
    """[(ends early, [settings tried together])]: along the option that this index has, each with every k_factor."""
    first = index.parts[0].index
    lists = inverted_lists(first)
    along: tuple[int | None, ...] = (None,)
    early = False
    if lists is not None:
        early = sweep.probes is None
        along = sweep.probes or tuple(2**i for i in range(int(math.log2(lists.nlist)) + 1))
        beside: tuple[int | None, ...] = sweep.ef_search or (index.settings.ef_search,)
        pairs = [[(p, e) for e in beside] for p in along]
    else:
        if sweep.probes is not None:
            raise ConfigError(f"--probes: an index of factory {index.factory!r} has no nprobe; leave it out")
        if is_graph(first):
            early = sweep.ef_search is None
            along = sweep.ef_search or EF_SEARCH
        elif sweep.ef_search is not None:
            raise ConfigError(f"--ef-search: an index of factory {index.factory!r} has no efSearch; leave it out")
        pairs = [[(None, e)] for e in along]
    factors = sweep.k_factor or (K_FACTORS if compresses(first) else (1,))
    grid = [[SearchSettings(p, e, f) for (p, e), f in itertools.product(together, factors)] for together in pairs]
    return [(early, grid)]


def compresses(index: Any) -> bool:
    """Whether the index compares codes rather than the vectors themselves, so that a k_factor can help."""
    name = type(index).__name__
    if name == "IndexPreTransform":
        return True
    return not any(name.endswith(kind) for kind in ("Flat", "IndexHNSWFlat", "IndexIVFFlat"))
