"""find_neighbors with an IVF index against faiss' own batch search, and where the stage's time goes.

    python benchmarks/find_neighbors.py [--corpus FILE.jsonl.xz] [--root FOLDER] [--threads 2] [--record]

Both sides search the same queries (chunks of the database itself, their stored vectors) in the same index file with the
same probes, k and threads, in turns in one process after a warm-up: `faiss` is one call of index.search over all query
vectors, which lie in memory; `stage` is run_stage of find_neighbors: reads chunks and vectors, searches, computes exact
distances, drops what is of the own document, keeps the best, writes, hashes and commits. Then once more on one thread
with timers around its parts: what is neither search, exact distances nor reading is exclusion, sentinels, statistics
and writing.

The corpus (default: documentation of installed packages) is made into chunks of `--chunk-length` tokens and embedded,
lexically or by the transformer in --model; --root keeps these artifacts for the next run. --record writes
benchmarks/records/find_neighbors.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import data_prep.find_neighbors as stage_module
from benchmarks.text_corpus import hardware
from benchmarks.vector_corpus import build_chunks, build_embeddings
from data_prep.build_index import build_index_stage
from data_prep.find_neighbors import FindNeighborsStage
from data_prep.runner import Executor, run_stage
from data_prep.stage import Shard, Stage
from data_prep.train_index import TrainIndexStage
from retro.artifacts.manifest import open_manifest
from retro.config.prep_index import IndexConfig, VectorIndexConfig
from retro.config.prep_neighbors import NeighborsConfig
from retro.retrieval import faiss_index
from retro.retrieval.faiss_index import FaissIndex, SearchSettings, read_faiss, set_parameters
from retro.retrieval.index_choice import compressed_options
from retro.retrieval.native import load_faiss
from retro.retrieval.vector_searcher import FAISS_FILE
from retro.retrieval.vectors import open_vectors

RECORD = Path(__file__).parent / "records" / "find_neighbors.json"


class SomeQueries(FindNeighborsStage):
    """The stage over the first shards of the queries only."""

    shards = 1

    def plan(self) -> list[Shard]:
        """As many shards as asked for."""
        return super().plan()[: self.shards]


def prepare(root: Path, arguments: argparse.Namespace) -> tuple[Path, Path]:
    """(chunks, embeddings), made or found in `root`."""
    workers = arguments.threads
    chunks = next(iter(root.glob("chunk-*")), None)
    if chunks is None:
        chunks, _ = build_chunks(root, arguments.corpus, arguments.megabytes, arguments.chunk_length, workers)
    return chunks, build_embeddings(root, chunks, arguments.model, arguments.dimension, workers)


def build_index(root: Path, embeddings: Path, arguments: argparse.Namespace) -> Path:
    """The index, its probes measured unless they are given."""
    vectors = open_vectors(embeddings)
    factory = arguments.factory or compressed_options(len(vectors), vectors.dimension)[0].factory
    config = IndexConfig(kind="vectors", vectors=VectorIndexConfig(factory=factory, probes=arguments.probes))
    executor = Executor(arguments.threads)
    trained = run_stage(TrainIndexStage(config, embeddings), root, executor)
    return run_stage(build_index_stage(config, embeddings=embeddings, trained=trained), root, executor)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Both sides with so many threads."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)
    faiss = load_faiss()
    used = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(used)
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def timed(call: Callable[[], Any]) -> float:
    """Seconds."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def breakdown(run: Callable[[], Any]) -> dict[str, float]:
    """Seconds of the stage by part, on one thread."""
    spent = dict.fromkeys(("search", "exact distances", "query vectors", "chunks read"), 0.0)

    def watch(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*positional: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*positional, **named)
            finally:
                spent[name] += time.perf_counter() - started

        return watched

    encoder = stage_module.QueryEncoder
    with (
        mock.patch.object(FaissIndex, "_search_part", watch("search", FaissIndex._search_part)),
        mock.patch.object(faiss_index, "rescore", watch("exact distances", faiss_index.rescore)),
        mock.patch.object(encoder, "encode", watch("query vectors", encoder.encode)),
        mock.patch.object(stage_module, "chunk_token_rows", watch("chunks read", stage_module.chunk_token_rows)),
    ):
        total = timed(run)
    rest = total - sum(spent.values())
    return {**spent, "exclusion, sentinels, statistics, writing": rest, "total": total}


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help=".jsonl file (.gz, .xz); default: installed documentation")
    parser.add_argument("--root", type=Path, help="folder that keeps chunks and embeddings; default: temporary")
    parser.add_argument("--megabytes", type=float, default=40.0)
    parser.add_argument("--chunk-length", type=int, default=32)
    parser.add_argument("--model", help="folder of a transformer embedder; default: lexical embeddings")
    parser.add_argument("--dimension", type=int, default=256, help="of lexical embeddings")
    parser.add_argument("--factory", help="default: the largest that auto would choose")
    parser.add_argument("--probes", type=int, help="default: measured")
    parser.add_argument("--candidates", type=int, default=NeighborsConfig().candidates, help="k of both sides")
    parser.add_argument("--keep", type=int, default=NeighborsConfig().keep)
    parser.add_argument("--queries", type=int, default=16384)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.root or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        chunks, embeddings = prepare(root, arguments)
        index = build_index(root, embeddings, arguments)
        result = compare(Path(temporary), chunks, embeddings, index, arguments)
    print(json.dumps(result, indent=1))
    print(f"stage: {result['share_of_faiss']['median']:.1%} of faiss' throughput (asked for: 85%)")
    print(f"exclusion, sentinels, writing: {result['share_of_the_rest']:.1%} of the stage (asked for: below 15%)")
    if arguments.record:
        result["date"] = time.strftime("%Y-%m-%d", time.gmtime())
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def compare(
    temporary: Path, chunks: Path, embeddings: Path, index: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Both sides in turns."""
    manifest, vectors = open_manifest(index), open_vectors(embeddings)
    config = NeighborsConfig(candidates=arguments.candidates, keep=arguments.keep, shard_chunks=4096)
    stage = SomeQueries(config, queries=chunks, database=chunks, searcher=index)
    SomeQueries.shards = max(1, arguments.queries // config.shard_chunks)
    plan = stage.plan()
    count = plan[-1].spec["stop"] - plan[0].spec["start"]
    raw = read_faiss(index / FAISS_FILE.format(manifest.stats["parts"][0]["name"]))
    settings = SearchSettings(**manifest.stats["search"])
    set_parameters(raw, settings, manifest.stats["factory"])
    queries = vectors.gather(np.arange(count))
    k = arguments.candidates * (settings.k_factor or 1)

    def run(stage: Stage = stage) -> None:
        shutil.rmtree(temporary / "out", ignore_errors=True)
        (temporary / "out").mkdir()
        run_stage(stage, temporary / "out", Executor(1), progress=False)

    seconds: dict[str, list[float]] = {"faiss": [], "stage": []}
    with threads(arguments.threads):
        for number in range(arguments.repeats + 1):
            took = {"faiss": timed(lambda: raw.search(queries, k)), "stage": timed(run)}
            if number:  # the first is the warm-up
                for name, value in took.items():
                    seconds[name].append(value)
    # A stage keeps its searcher and that its threads, so another one is timed on one thread.
    alone = SomeQueries(config, queries=chunks, database=chunks, searcher=index)
    with threads(1):
        run(alone)
        parts = breakdown(lambda: run(alone))
    shares = [a / b for a, b in zip(seconds["faiss"], seconds["stage"], strict=True)]
    return {
        "benchmark": "find_neighbors",
        "index": {
            "factory": manifest.stats["factory"],
            "vectors": len(vectors),
            "dimension": vectors.dimension,
            "search": manifest.stats["search"],
            "recall": manifest.stats["recall"],
        },
        "k": k,
        "candidates": arguments.candidates,
        "keep": arguments.keep,
        "queries": count,
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "queries_per_second": {name: spread([count / value for value in values]) for name, values in seconds.items()},
        "share_of_faiss": spread(shares),
        "breakdown_seconds_on_one_thread": {name: round(value, 3) for name, value in parts.items()},
        "share_of_the_rest": round(parts["exclusion, sentinels, statistics, writing"] / parts["total"], 4),
        "hardware": hardware("faiss-cpu", "numpy", "torch"),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


if __name__ == "__main__":
    sys.exit(main())
