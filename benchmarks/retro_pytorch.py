"""Preparation of a retrieval database end to end, against that of RETRO-pytorch (PyPI retro-pytorch 0.3.9).

    python benchmarks/retro_pytorch.py --model FOLDER --peer-python PEER/bin/python [--corpus docs.jsonl]
                                       [--chunks 2000] [--rounds 3] [--threads 2] [--record]

From a folder of .txt files (written by this script, one per document) to the nearest neighbors of every chunk in other
documents, by both programs on the same files, with the same tokenizer, the same encoder weights (FOLDER, for instance
all-MiniLM-L6-v2), the same chunks of 64 tokens, the same number of threads, on this machine. The sides take turns, each
time in fresh processes and empty folders:

  RETRO-pytorch  text_folder_to_chunks_ and chunks_to_precalculated_knn_ (benchmarks/retro_pytorch_peer.py says which
                 parts of it are replaced: where the model is loaded from, nothing else);
  ours           the stages of `retro prep run` with their defaults but for the tokenizer and no deduplication, with
                 `threads` worker processes;
  ours fp32      the same with precision: fp32, as RETRO-pytorch computes.

The total is the whole program, from its first import on; `start` in the account is the imports, on the peer's side the
loading of the model too (ours is in `embed`, once per worker). One difference remains, in the peer's favour: ours
stores 20 neighbors per chunk, checksums and manifests, and flushes what it stores to the disk.

The peer's environment (its faiss wrapper needs an old pyarrow, and its tokenizer calls a transformers before 5):

    python3 -m venv PEER
    PEER/bin/pip install torch==2.13.0
    PEER/bin/pip install "pyarrow<21" "transformers<5" faiss-cpu retro-pytorch==0.3.9

Reported per side: seconds and share of the total by stage, chunks, padding, missing neighbors, and recall (share of the
exact 2 nearest among the 2 stored ones, each measured on the side's own vectors); and the multiple, end to end and by
stage, within a round (median and quartiles). Needs 5 minutes on 2 quiet cores with all-MiniLM-L6-v2 at the default
size.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.retro_pytorch_peer import quality
from benchmarks.text_corpus import hardware, iter_texts

RECORD = Path(__file__).parent / "records" / "retro_pytorch.json"
PEER = Path(__file__).with_name("retro_pytorch_peer.py")
_NEIGHBORS = 2

#: What the parts of both sides are called in the account.
OURS = {
    "imports": "start",
    "ingest": "text to chunks",
    "train_tokenizer": "text to chunks",
    "tokenize": "text to chunks",
    "chunk": "text to chunks",
    "fit_embedder": "embed",
    "embed": "embed",
    "train_index": "index",
    "build_index": "index",
    "find_neighbors": "neighbors",
}
THEIRS = {
    "imports": "start",
    "load_model": "start",
    "text_folder_to_chunks_": "text to chunks",
    "chunks_to_embeddings_": "embed",
    "memmap_file_to_chunks_": "index",
    "index_embeddings": "index",
    "search": "neighbors",
}


def write_texts(folder: Path, corpus: Path | None, model: str, chunks: int) -> int:
    """Write documents of about `chunks` chunks of 64 of the model's tokens; returns how many documents."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    folder.mkdir()
    total = documents = 0
    for text in iter_texts(corpus):
        if not text.strip():
            continue
        (folder / f"{documents:07d}.txt").write_text(text, encoding="utf-8")
        documents += 1
        total += -(-len(tokenizer(text, verbose=False)["input_ids"]) // 64)
        if total >= chunks:
            return documents
    raise SystemExit(f"{corpus}: {total} chunks, --chunks asks for {chunks}")


def run_ours(texts: str, root: str, model: str, threads: int, precision: str) -> None:
    """Carry out the stages and print one line of JSON, as the peer does."""
    start = time.perf_counter()
    import torch  # noqa: F401 - before faiss, and on this clock
    from transformers import AutoModel, AutoTokenizer, BertModel  # noqa: F401 - imported when first asked for

    from data_prep.execution.executor import Executor
    from data_prep.pipeline import steps
    from data_prep.runner import run_stage
    from retro.artifacts.manifest import open_manifest
    from retro.config.loader import from_dict
    from retro.config.preparation import PrepConfig
    from retro.data.chunk_store import open_chunk_store
    from retro.retrieval.vectors import open_vectors

    seconds = {"imports": time.perf_counter() - start}
    settings = {
        "root": root,
        "workers": threads,
        "ingest": {
            "reader": "text_folder",
            "text_folder": {"folder": texts},
            "split": {"validation_fraction": 0.0, "test_fraction": 0.0},
        },
        "deduplicate": None,
        "tokenizer": {"kind": "huggingface", "existing": {"path": model}},
        "query_splits": ["train"],
        "embed": {"kind": "transformer", "transformer": {"model": model, "precision": precision}},
        "index": {"kind": "vectors", "vectors": {"factory": "auto"}},
    }
    config = from_dict(PrepConfig, settings, "benchmark")
    executor = Executor(threads)
    done: dict[str, Path] = {}
    for step in steps(config):
        began = time.perf_counter()
        done[step.name] = run_stage(step.build(done), Path(root), executor, progress=False)
        name = step.name.split()[0]
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
    seconds["total"] = time.perf_counter() - start
    table = open_manifest(done["find_neighbors train"])
    ids = [np.load(done["find_neighbors train"] / f"ids-{shard['name']}.npy") for shard in table.shards]
    chunks = open_chunk_store(done["chunk train"])
    every = np.arange(chunks.num_chunks)
    vectors = open_vectors(done["embed"]).gather(every)
    json.dump(
        {
            "seconds": seconds,
            "chunks": chunks.num_chunks,
            "precision": open_manifest(done["embed"]).config["recipe"]["precision"],
            "index": open_manifest(done["build_index"]).stats.get("factory", "exact"),
            **quality(np.concatenate(ids)[:, :_NEIGHBORS], vectors, chunks.documents(every)),
        },
        sys.stdout,
    )


def run_child(command: list[str], folder: Path, threads: int) -> dict[str, Any]:
    """The JSON that a side prints, run in the empty folder."""
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
    environment |= {"RAYON_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "GOMP_SPINCOUNT": "1000"}
    child = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if child.returncode:
        raise SystemExit(f"{command[0]} {command[1]}: ended with {child.returncode}\n{child.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return result


def account(seconds: dict[str, float], parts: dict[str, str]) -> dict[str, float]:
    """Seconds by part and in total."""
    found = dict.fromkeys(("start", "text to chunks", "embed", "index", "neighbors"), 0.0)
    for name, part in parts.items():
        found[part] += seconds.get(name, 0.0)
    return {**found, "total": seconds["total"]}


def spread(values: list[float], digits: int = 2) -> dict[str, Any]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": round(middle, digits), "quartiles": [round(low, digits), round(high, digits)]}


def measure(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """All rounds."""
    model, texts = str(Path(arguments.model).resolve()), root / "texts"
    documents = write_texts(texts, arguments.corpus, model, arguments.chunks)
    threads = str(arguments.threads)
    this = [sys.executable, str(Path(__file__).resolve()), "--side", str(texts), "work", model, threads]
    # Not resolved: a virtual environment's python is a link.
    peer = [str(Path(arguments.peer_python).absolute()), str(PEER.resolve()), str(texts), model, threads]
    commands = {
        "RETRO-pytorch": [*peer, str(_NEIGHBORS)],
        "ours": [*this, "auto"],
        "ours fp32": [*this, "fp32"],
    }
    times: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    last: dict[str, dict[str, Any]] = {}
    for i in range(arguments.rounds):
        for name, command in commands.items():
            last[name] = run_child(command, root / f"{name} {i}", arguments.threads)
            times[name].append(account(last[name]["seconds"], THEIRS if name == "RETRO-pytorch" else OURS))
            print(f"round {i + 1}: {name}: {times[name][-1]['total']:.1f} s", file=sys.stderr)
    parts = list(times["ours"][0])
    return {
        "documents": documents,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "model": Path(model).name,
        "sides": {
            name: {
                "seconds": {part: spread([r[part] for r in rounds]) for part in parts},
                "share": {p: round(statistics.median(r[p] / r["total"] for r in rounds), 3) for p in parts[:-1]},
                **{k: round(v, 4) if isinstance(v, float) else v for k, v in last[name].items() if k != "seconds"},
                "stages_of_the_last_round": {k: round(v, 2) for k, v in last[name]["seconds"].items()},
            }
            for name, rounds in times.items()
        },
        "multiple": {
            name: {
                part: spread([a[part] / b[part] for a, b in zip(times["RETRO-pytorch"], times[name], strict=True)])
                for part in parts
            }
            for name in ("ours", "ours fp32")
        },
        "hardware": hardware("torch", "transformers", "faiss-cpu", "numpy"),
    }


def main() -> None:
    """See the module."""
    if sys.argv[1:2] == ["--side"]:
        texts, root, model, threads, precision = sys.argv[2:]
        run_ours(texts, root, model, int(threads), precision)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of an encoder")
    parser.add_argument("--peer-python", required=True, help="python of the peer's environment")
    parser.add_argument("--corpus", type=Path, help="a .jsonl file (.gz, .xz); default: installed documentation")
    parser.add_argument("--chunks", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true", help=f"write the result to {RECORD}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = measure(arguments, Path(name))
    print(json.dumps(result, indent=1))
    if arguments.record:
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
