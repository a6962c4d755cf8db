"""recall@10 and queries per second of the index that `factory: auto` chooses, on a real corpus.

    python benchmarks/index_recall.py [--embeddings FOLDER | --corpus FILE.jsonl.xz] [--model FOLDER] [--record]

For `auto` at the size of the corpus, and for each compressed index that auto would choose for a larger one or a smaller
memory budget (`--factories` names others): the settings that build_index measures by itself, recall@10 against exact
search on queries that were not used to choose them (vectors of the database, each without itself), queries per second
of FaissIndex.search and of faiss' own batch search with the same settings, k and threads (in turns, `--repeats` times),
time to train and fill, bytes per vector.

Without --embeddings the corpus (a .jsonl file with a field `text`; default: documentation of installed packages) is cut
into chunks of `--chunk-length` tokens and embedded: lexically with `--dimension` numbers, or by the transformer in the
folder --model. --record writes benchmarks/records/index_recall.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.text_corpus import hardware
from benchmarks.vector_corpus import build_chunks, build_embeddings
from data_prep.build_index import build_index_stage
from data_prep.index_quality import draw_sample, measure_recall
from data_prep.runner import Executor, run_stage
from data_prep.train_index import TrainIndexStage, vector_metric
from retro.artifacts.manifest import open_manifest
from retro.config.prep_index import IndexConfig, VectorIndexConfig
from retro.retrieval.index_choice import compressed_options
from retro.retrieval.native import load_faiss, usable_threads
from retro.retrieval.vector_searcher import open_vector_index
from retro.retrieval.vectors import open_vectors

RECORD = Path(__file__).parent / "records" / "index_recall.json"
SEED = 12345  # of the queries: not that of the sample on which settings are chosen


def measure(embeddings: Path, factory: str, root: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One index."""
    config = IndexConfig(kind="vectors", vectors=VectorIndexConfig(factory=factory))
    executor = Executor(arguments.workers)
    train_seconds, trained = timed(lambda: run_stage(TrainIndexStage(config, embeddings), root, executor))
    stage = build_index_stage(config, embeddings=embeddings, trained=trained)
    build_seconds, folder = timed(lambda: run_stage(stage, root, executor))
    manifest = open_manifest(folder)
    vectors, metric = open_vectors(embeddings), vector_metric(embeddings)
    index = open_vector_index(folder, manifest, vectors, metric, "cpu")
    asked = dataclasses.replace(config.vectors, seed=SEED, recall_queries=arguments.queries, recall_at=arguments.at)
    sample = draw_sample(vectors, metric, asked)
    result: dict[str, Any] = {
        "factory": manifest.stats["factory"],
        "reason": open_manifest(trained).stats["reason"],
        "search": manifest.stats.get("search"),
        f"recall@{arguments.at}": measure_recall(index, sample),
        "recall_in_manifest": manifest.stats["recall"],
        "train_seconds": round(train_seconds, 1),
        "build_seconds": round(build_seconds, 1),
        "bytes_per_vector": round(
            sum(f["bytes"] for f in manifest.files if f["name"].startswith("index-")) / max(len(vectors), 1), 1
        ),
    }
    sides: dict[str, Callable[[], Any]] = {"ours": lambda: index.search(sample.queries, arguments.at)}
    if manifest.stats["factory"] != "exact":
        load_faiss().omp_set_num_threads(usable_threads())
        k = arguments.at * (manifest.stats["search"]["k_factor"] or 1)
        raw = index.parts[0].index  # type: ignore[attr-defined]
        sides["faiss"] = lambda: raw.search(sample.queries, k)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(arguments.repeats + 1):
        for name, call in sides.items():
            seconds, _ = timed(call)
            if number:  # the first is the warm-up
                rates[name].append(len(sample.queries) / seconds)
    result["queries_per_second"] = {
        name: {"median": round(statistics.median(values)), "least": round(min(values)), "most": round(max(values))}
        for name, values in rates.items()
    }
    return result


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, result)."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", type=Path, help="finished embeddings; default: made of the corpus")
    parser.add_argument("--corpus", type=Path, help=".jsonl file (.gz, .xz); default: installed documentation")
    parser.add_argument("--megabytes", type=float, default=40.0)
    parser.add_argument("--chunk-length", type=int, default=32)
    parser.add_argument("--model", help="folder of a transformer embedder; default: lexical embeddings")
    parser.add_argument("--dimension", type=int, default=256, help="of lexical embeddings")
    parser.add_argument("--factories", nargs="*", help="default: auto and every compressed index it knows")
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--at", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root, repeated, embeddings = Path(temporary), False, arguments.embeddings
        if embeddings is None:
            chunks, repeated = build_chunks(
                root, arguments.corpus, arguments.megabytes, arguments.chunk_length, arguments.workers
            )
            embeddings = build_embeddings(root, chunks, arguments.model, arguments.dimension, arguments.workers)
        vectors = open_vectors(embeddings)
        recipe = open_manifest(embeddings).config["recipe"]
        factories = arguments.factories or [
            "auto",
            *(option.factory for option in compressed_options(len(vectors), vectors.dimension)),
        ]
        results = {}
        for factory in factories:
            results[factory] = found = measure(embeddings, factory, root, arguments)
            print(json.dumps({factory: found}, indent=1), flush=True)
    auto = results.get("auto")
    if auto is not None:
        recall = auto[f"recall@{arguments.at}"]
        print(f"auto: {auto['factory']}, recall@{arguments.at} {recall:.3f} (asked for: at least 0.95)")
    if arguments.record:
        record = {
            "benchmark": "index_recall",
            "corpus": {
                "vectors": len(vectors),
                "dimension": vectors.dimension,
                "embedder": recipe.get("kind", "transformer" if arguments.model else "lexical"),
                "file": None if arguments.corpus is None else arguments.corpus.name,
                "used_more_than_once": repeated,
                "distinct_vectors_of_a_sample": distinct_share(vectors),
            },
            "queries": arguments.queries,
            "threads": usable_threads(),
            "repeats": arguments.repeats,
            "results": results,
            "hardware": hardware("faiss-cpu", "numpy", "torch"),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def distinct_share(vectors: Any) -> float:
    """Share of distinct vectors among 20,000: copies make recall depend on which copy is called the nearest."""
    rows = np.unique(np.linspace(0, len(vectors) - 1, 20_000, dtype=np.int64))
    sample = vectors.gather(rows)
    return round(len(np.unique(sample, axis=0)) / len(sample), 4)


if __name__ == "__main__":
    sys.exit(main())
