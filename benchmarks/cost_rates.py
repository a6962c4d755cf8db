"""Rates of the preparation's stages on one CPU core: what `retro prep plan --rates measured` multiplies with.

    python benchmarks/cost_rates.py [--megabytes 12] [--repeats 3] [--corpus FOLDER] [--record] [--update]

The stages are run one after the other in this process on one thread, over a corpus written as JSON Lines: --corpus, a
folder of .jsonl files with `id` and `text`, or the documentation of the standard library and of the installed packages.
Rates are work divided by CPU time of the process (a busy machine stretches wall time, not this), medians over the
repeats with the lowest and the highest beside them. A transformer embedder is one of 6 layers of width 384 with random
weights (the size of all-MiniLM-L6-v2): its speed does not depend on what it has learned. --record writes
benchmarks/records/cost_rates.json, --update data_prep/rate_sets/measured.yaml.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data_prep.build_index import build_index_stage
from data_prep.index_size import index_size
from data_prep.pipeline import steps
from data_prep.runner import run_stage
from data_prep.stage import Stage
from retro.artifacts.manifest import open_manifest
from retro.config.loader import from_dict
from retro.config.prep_index import Bm25Config, IndexConfig
from retro.config.preparation import PrepConfig
from retro.data.chunk_store import open_chunk_store
from retro.data.document import iter_documents
from retro.retrieval.chunk_text import chunk_token_rows
from retro.retrieval.searcher import open_searcher
from retro.retrieval.vectors import open_vectors

HERE = Path(__file__).parent
RECORD = HERE / "records" / "cost_rates.json"
RATES = HERE.parent / "data_prep" / "rate_sets" / "measured.yaml"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
CHUNK, LISTS, PROBES, QUERIES, EMBEDDED = 64, 1024, 32, 512, 512
FACTORY = f"IVF{LISTS}_HNSW32,SQ8"
WHAT = {
    "text_bytes_per_token": "",
    "tokens_per_document": "",
    "compression": "",
    "record_bytes_per_document": "",
    "ingest_mb_per_core_s": "JSON Lines, uncompressed",
    "deduplicate_mb_per_core_s": "near duplicates, 128 permutations",
    "tokenize_mb_per_core_s": "own sentencepiece BPE model of 8,192 pieces",
    "chunk_chunks_per_core_s": "",
    "lexical_chunks_per_core_s": "256 dimensions",
    "embed_chunks_per_core_s": "6 layers of width 384, fp32",
    "train_gflops_per_core": f"k-means of {LISTS} lists",
    "encode_vectors_per_core_s": f"{FACTORY} of 256 dimensions",
    "scan_mb_per_core_s": f"{FACTORY}, {PROBES} lists looked at, exact distances of the candidates included",
    "bm25_index_chunks_per_core_s": "tokens and bigrams",
    "bm25_postings_per_token": "tokens and bigrams",
    "bm25_search_ms_per_million": "tokens and bigrams, max_document_frequency 0.1",
}


def write_corpus(folder: Path, megabytes: float, source: str | None, scratch: Path) -> None:
    """At most so many MB of texts as JSON Lines in four files."""
    folder.mkdir(parents=True)
    size = 0
    files = [open(folder / f"part-{i}.jsonl", "w", encoding="utf-8") for i in range(4)]  # noqa: SIM115
    for number, (identifier, text) in enumerate(texts(source, scratch)):
        files[number % 4].write(json.dumps({"id": identifier, "text": text}, ensure_ascii=False) + "\n")
        size += len(text.encode())
        if size >= megabytes * 1e6:
            break
    for file in files:
        file.close()


def texts(source: str | None, scratch: Path) -> Iterator[tuple[str, str]]:
    """(id, text) of a folder of .jsonl files, or of the installed documentation."""
    if source is not None:
        for path in sorted(Path(source).glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                yield str(record["id"]), str(record["text"])
        return
    docs = {"standard_library": True, "packages": ["numpy", "torch", "scipy"]}
    config = from_dict(PrepConfig, {"root": str(scratch), "ingest": {"reader": "python_docs", "python_docs": docs}})
    for document in iter_documents(run_stage(steps(config)[0].build({}), scratch, progress=False)):
        yield document.id, document.text


def settings(corpus: Path, root: Path) -> PrepConfig:
    """The stages that are measured."""
    return from_dict(
        PrepConfig,
        {
            "root": str(root),
            "workers": 1,
            "ingest": {
                "reader": "jsonl",
                "jsonl": {"folder": str(corpus), "files": ["*.jsonl"], "id_field": "id"},
                "split": {"by": "document", "validation_fraction": 0.0, "test_fraction": 0.02},
            },
            "tokenizer": {"train": {"vocab_size": 8192, "max_characters": 2_000_000}},
            "chunk": {"chunk_length": CHUNK},
            "query_splits": ["test"],
            "embed": {"kind": "lexical"},
            "index": {"kind": "vectors", "vectors": {"factory": FACTORY, "probes": PROBES, "k_factor": 4}},
        },
    )


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """(CPU seconds of this process, result)."""
    before = time.process_time()
    result = call()
    return time.process_time() - before, result


def timed_shards(stage: Stage) -> float:
    """CPU seconds of all shards of a stage, without its closing step."""
    total = 0.0
    for shard in stage.plan():
        with tempfile.TemporaryDirectory() as name:
            total += seconds(lambda s=shard, n=name: stage.run_shard(s, Path(n)))[0]  # type: ignore[misc]
    return total


def measure(corpus: Path, root: Path, model: Path | None) -> dict[str, float]:
    """All rates, once."""
    config = settings(corpus, root)
    done: dict[str, Path] = {}
    spent: dict[str, float] = {}
    for step in steps(config):
        if step.name.startswith("find_neighbors"):
            continue
        stage = step.build(done)
        if step.name == "build_index":
            spent["encode"] = timed_shards(stage)
        spent[step.name], done[step.name] = seconds(lambda s=stage: run_stage(s, root, progress=False))  # type: ignore[misc]
    documents = open_manifest(done["ingest"])
    tokens = [open_manifest(done[f"tokenize {split}"]) for split in ("train", "test")]
    chunks = open_manifest(done["chunk train"]).rows
    text = documents.stats["text_bytes"] / 1e6
    stored = sum(f["bytes"] for f in documents.all_files() if f["name"].startswith("documents"))
    lines = sum(f["bytes"] for m in tokens for f in m.all_files() if f["name"].startswith("docs"))
    sample = open_manifest(done["train_index"]).stats["training_vectors"]
    dimension = open_vectors(done["embed"]).dimension
    number = sum(m.stats["tokens"] for m in tokens)
    deduplicate = sum(spent[name] for name in spent if name in ("sign_documents", "find_duplicates", "deduplicate"))
    found = {
        "text_bytes_per_token": sum(m.stats["text_bytes"] for m in tokens) / number,
        "tokens_per_document": number / sum(m.rows for m in tokens),
        "compression": text * 1e6 / stored,
        "record_bytes_per_document": lines / sum(m.rows for m in tokens),
        "ingest_mb_per_core_s": text / spent["ingest"],
        "deduplicate_mb_per_core_s": text / deduplicate,
        "tokenize_mb_per_core_s": tokens[0].stats["text_bytes"] / 1e6 / spent["tokenize train"],
        "chunk_chunks_per_core_s": chunks / spent["chunk train"],
        "lexical_chunks_per_core_s": chunks / spent["embed"],
        "train_gflops_per_core": 2.0 * sample * LISTS * dimension * 10 / 1e9 / spent["train_index"],
        "encode_vectors_per_core_s": chunks / spent["encode"],
    }
    own = np.sort(np.random.default_rng(0).choice(chunks, min(QUERIES, chunks), replace=False))
    vectors = open_vectors(done["embed"]).gather(own)
    searcher = open_searcher(done["build_index"])
    searcher.search_encoded(vectors[:32], 20)
    spent["search"], _ = seconds(lambda: searcher.search_encoded(vectors, 20))
    read = len(own) * PROBES / LISTS * chunks * index_size(FACTORY, dimension).code / 1e6
    found["scan_mb_per_core_s"] = read / spent["search"]
    found |= measure_bm25(done["chunk train"], root, own)
    if model is not None:
        found["embed_chunks_per_core_s"] = measure_transformer(done["chunk train"], model)
    return found


def measure_bm25(chunks: Path, root: Path, own: np.ndarray) -> dict[str, float]:
    """Building and searching an index of terms."""
    config = IndexConfig(kind="bm25", bm25=Bm25Config(max_document_frequency=0.1))
    spent, folder = seconds(lambda: run_stage(build_index_stage(config, chunks), root, progress=False))
    store, searcher = open_chunk_store(chunks), open_searcher(folder)
    rows = chunk_token_rows(store, own)
    searcher.search(rows[:32], 20)
    search, _ = seconds(lambda: searcher.search(rows, 20))
    manifest = open_manifest(folder)
    return {
        "bm25_index_chunks_per_core_s": manifest.rows / spent,
        "bm25_postings_per_token": manifest.stats["postings"] / open_manifest(chunks).stats["tokens"],
        "bm25_search_ms_per_million": search * 1000 / len(rows) / (manifest.rows / 1e6),
    }


def measure_transformer(chunks: Path, model: Path) -> float:
    """Chunks embedded per CPU second."""
    from retro.config.prep_embed import TransformerConfig
    from retro.retrieval.chunk_text import decode_rows, open_chunk_tokenizer
    from retro.retrieval.transformer import TransformerEmbedder

    store = open_chunk_store(chunks)
    count = min(EMBEDDED, store.num_chunks)
    some = decode_rows(open_chunk_tokenizer(chunks), chunk_token_rows(store, np.arange(count)))
    embedder = TransformerEmbedder(TransformerConfig(model=str(model), precision="fp32", device="cpu"))
    embedder.embed(some[:16])
    spent, _ = seconds(lambda: embedder.embed(some))
    return count / spent


def write_model(folder: Path, corpus: Path) -> Path | None:
    """An encoder of the size of all-MiniLM-L6-v2, its vocabulary the corpus's words; None without transformers."""
    try:
        import torch
        from transformers import BertConfig, BertModel, BertTokenizer
    except ImportError:
        return None
    torch.set_num_threads(1)
    words = Counter(w for path in corpus.glob("*.jsonl") for w in path.read_text(encoding="utf-8").lower().split())
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *(f"{p}{chr(c)}" for c in range(33, 127) for p in ("", "##")),
    ]
    pieces += [word for word, _ in words.most_common(20000) if word.isalpha() and word.isascii() and len(word) > 1]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)) + "\n", encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    BertModel(BertConfig(vocab_size=len(dict.fromkeys(pieces)), **shape)).save_pretrained(folder)
    return folder


def hardware() -> str:
    """The processor in words."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        name = next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{len(os.sched_getaffinity(0))} cores, {name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", help="folder of .jsonl files with id and text")
    parser.add_argument("--megabytes", type=float, default=12.0, help="of text (default 12)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    parser.add_argument("--update", action="store_true", help=f"write {RATES.name}, the rates of the package")
    arguments = parser.parse_args()
    if not ONE_THREAD.items() <= os.environ.items():  # read by the libraries when they are loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD})
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_corpus(place / "corpus", arguments.megabytes, arguments.corpus, place / "docs")
        model = write_model(place / "model", place / "corpus")
        rounds = [measure(place / "corpus", place / f"round-{i}", model) for i in range(arguments.repeats)]
        size = sum(path.stat().st_size for path in (place / "corpus").iterdir()) / 1e6
    results = {
        key: {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
        for key in rounds[0]
        for values in [[r[key] for r in rounds]]
    }
    for key, value in results.items():
        print(f"{key:<32} {value['median']:>14,.4g}   ({value['lowest']:,.4g} to {value['highest']:,.4g})")
    today = datetime.date.today().isoformat()
    if arguments.record:
        corpus = "given" if arguments.corpus else "documentation of the standard library, numpy, torch and scipy"
        record = {
            "benchmark": "cost_rates",
            "command": "python benchmarks/cost_rates.py --record --update",
            "date": today,
            "hardware": hardware(),
            "python": platform.python_version(),
            "corpus": {"what": corpus, "megabytes": round(size, 1)},
            "repeats": arguments.repeats,
            "unit": "per CPU second of one thread",
            "results": results,
        }
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if arguments.update:
        where = f"measured {today}, one core of {hardware().split(', ', 1)[1]}, benchmarks/records/{RECORD.name}"
        content: dict[str, Any] = {
            key: {
                "value": float(f"{value['median']:.4g}"),
                "source": f"{WHAT[key]}; {where}" if WHAT[key] else where,
            }
            for key, value in results.items()
        }
        head = "# Rates of one CPU core. Written by benchmarks/cost_rates.py --update; do not edit.\n"
        RATES.write_text(head + yaml.safe_dump(content, sort_keys=False, width=110), encoding="utf-8")


if __name__ == "__main__":
    main()
