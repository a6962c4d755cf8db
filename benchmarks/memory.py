"""Peak memory of the preparation's stages on a corpus of size s and on one ten times as large.

    python benchmarks/memory.py [--corpus docs.jsonl] [--megabytes 4] [--factor 10] [--record]

The pipeline (jsonl -> ingest -> tokenizer -> tokens -> chunks -> embeddings -> exact index -> neighbors of the held-out
chunks) runs below a temporary folder, each stage in a process of its own without workers, so that a process's peak is
that stage's. Shards are small, so that at size s several of every kind are full already. Two peaks per stage:

  anonymous  the most private memory at any time (RssAnon of /proc/self/status, sampled every 2 ms): what a stage holds
             and nothing can take from it. THIS IS WHAT IS CLAIMED: it must grow by less than 20 %.
  resident   VmHWM: the same and the pages of mapped files (tokens, offsets, vectors) that the system leaves mapped
             while memory is free and takes back when it is not. It grows towards the size of the files with no need
             for them; reported, not claimed. (ru_maxrss would say the same, did it not begin with the peak of the
             process that this one was started from.)

Both include the interpreter and its libraries (column `start`: anonymous memory before the stage begins). Linux only.
Needs 5 minutes at the default size on 2 cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

RECORD = Path(__file__).parent / "records" / "memory.json"
CLAIMED = ("ingest", "tokenize", "chunk", "embed", "find_neighbors")
FILE_BYTES = 500_000
LIMIT = 1.2


def configuration(root: Path, corpus: Path) -> Any:
    """The preparation that is measured: small shards of every kind."""
    from retro.config.loader import from_dict
    from retro.config.prep_neighbors import NeighborsConfig
    from retro.config.preparation import PrepConfig

    neighbors: dict[str, Any] = {"candidates": 40, "keep": 8}
    names = {field.name for field in dataclasses.fields(NeighborsConfig)}
    neighbors |= {"shard_chunks": 256} if "shard_chunks" in names else {"shard_sequences": 32}
    return from_dict(
        PrepConfig,
        {
            "root": str(root),
            "workers": 1,
            "ingest": {
                "reader": "jsonl",
                "jsonl": {"folder": str(corpus), "id_field": "id", "group_field": "group"},
                "split": {"by": "document", "validation_fraction": 0.02, "test_fraction": 0.0},
            },
            "deduplicate": None,
            "tokenizer": {"train": {"vocab_size": 1024, "max_characters": 300_000}},
            "token_shard_bytes": 100_000,
            "chunk": {"shard_documents": 100},
            "query_splits": ["valid"],
            "embed": {"lexical": {"dimension": 64, "buckets": 65536}, "shard_chunks": 2048},
            "index": {"kind": "vectors"},
            "neighbors": neighbors,
        },
    )


def write_corpus(folder: Path, source: Path | None, size: int) -> int:
    """JSON Lines files of FILE_BYTES each with about `size` bytes of text; returns the documents."""
    from benchmarks.text_corpus import read_texts

    folder.mkdir(parents=True)
    texts, _ = read_texts(source, size)
    # Documents of much the same length: with a few giants the longest one, and not the shard, would be what is held.
    pieces = [text[i : i + 4000] for text in texts for i in range(0, len(text), 4000)]
    file, written, number = None, 0, 0
    for i, text in enumerate(pieces):
        if file is None or written >= FILE_BYTES:
            if file is not None:
                file.close()
            file = open(folder / f"{number:05d}.jsonl", "w", encoding="utf-8")  # noqa: SIM115
            written, number = 0, number + 1
        line = json.dumps({"id": f"d{i}", "text": f"{i} {text}", "group": f"g{i // 5}"}) + "\n"
        written += file.write(line)
    if file is not None:
        file.close()
    return len(pieces)


def status_kib(name: str) -> int:
    """A field of /proc/self/status: RssAnon, private memory of this process now; VmHWM, its highest resident set."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def run_alone(root: Path, corpus: Path, name: str) -> None:
    """In a process of its own: run one step of the pipeline and print its figures as JSON."""
    from data_prep.pipeline import iter_folders
    from data_prep.runner import run_stage

    stage = next(stage for step, stage, _ in iter_folders(configuration(root, corpus)) if step.name == name)
    start = peak = status_kib("RssAnon")
    going = True

    def watch() -> None:
        nonlocal peak
        while going:
            peak = max(peak, status_kib("RssAnon"))
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    begin = time.perf_counter()
    folder = run_stage(stage, root, progress=False)
    seconds = time.perf_counter() - begin
    going = False
    thread.join()
    from retro.artifacts.manifest import open_manifest

    manifest = open_manifest(folder)
    figures = {
        "start_mib": start / 1024,
        "anonymous_mib": peak / 1024,
        "resident_mib": status_kib("VmHWM") / 1024,
        "seconds": seconds,
        "shards": len(manifest.shards),
        "rows": manifest.rows,
    }
    print(json.dumps({key: round(value, 2) for key, value in figures.items()}))


def measure_size(root: Path, corpus: Path, documents: int) -> dict[str, Any]:
    """Figures of every step on one corpus."""
    from data_prep.pipeline import steps

    # One thread each: pools of threads have arenas of their own, which come and go.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    out: dict[str, Any] = {"documents": documents, "steps": {}}
    for step in steps(configuration(root, corpus)):
        command = [sys.executable, __file__, "--alone", step.name, "--root", str(root), "--folder", str(corpus)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"{step.name}: {done.stderr[-2000:]}")
        out["steps"][step.name] = json.loads(done.stdout)
        print(f"  {step.name}: {out['steps'][step.name]}", flush=True)
    return out


def compare(small: dict[str, Any], large: dict[str, Any]) -> dict[str, Any]:
    """Ratios by step, and whether those that are claimed stay below the limit."""
    rows = {}
    for name, before in small["steps"].items():
        after = large["steps"][name]
        rows[name] = {
            "claimed": name.split()[0] in CLAIMED,
            **{
                f"{key}_ratio": round(after[f"{key}_mib"] / before[f"{key}_mib"], 3)
                for key in ("anonymous", "resident")
            },
            "anonymous_mib": [before["anonymous_mib"], after["anonymous_mib"]],
            "resident_mib": [before["resident_mib"], after["resident_mib"]],
            "start_mib": before["start_mib"],
            "shards": [before["shards"], after["shards"]],
        }
    return {
        "steps": rows,
        "largest_claimed_ratio": max(row["anonymous_ratio"] for row in rows.values() if row["claimed"]),
        "claim_holds": all(row["anonymous_ratio"] < LIMIT for row in rows.values() if row["claimed"]),
    }


def show(result: dict[str, Any]) -> None:
    """The table."""
    print(
        f"{'step':24s} {'start':>7s} {'anonymous, MiB':>20s} {'ratio':>6s} {'resident, MiB':>20s} {'ratio':>6s}  shards"
    )
    for name, row in result["steps"].items():
        pairs = [f"{row[key][0]:9.1f} {row[key][1]:9.1f}" for key in ("anonymous_mib", "resident_mib")]
        mark = "*" if row["claimed"] else " "
        print(
            f"{mark}{name:23s} {row['start_mib']:7.1f} {pairs[0]:>20s} {row['anonymous_ratio']:6.2f} "
            f"{pairs[1]:>20s} {row['resident_ratio']:6.2f}  {row['shards'][0]} {row['shards'][1]}"
        )
    word = "holds" if result["claim_holds"] else "DOES NOT HOLD"
    print(
        f"* claimed: anonymous memory grows by less than 20 %: {word} (largest {result['largest_claimed_ratio']:.2f})"
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a .jsonl file (.gz, .xz); default: installed documentation")
    parser.add_argument("--megabytes", type=float, default=4.0, help="text of the smaller corpus")
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--record", action="store_true", help=f"write the result to {RECORD}")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        run_alone(arguments.root, arguments.folder, arguments.alone)
        return
    from benchmarks.text_corpus import hardware

    sizes = []
    with tempfile.TemporaryDirectory() as name:
        for label, megabytes in (("s", arguments.megabytes), ("large", arguments.megabytes * arguments.factor)):
            print(f"{megabytes:g} MB of text", flush=True)
            corpus = Path(name) / label / "corpus"
            documents = write_corpus(corpus, arguments.corpus, int(megabytes * 1e6))
            sizes.append(measure_size(Path(name) / label / "root", corpus, documents))
    result = {
        "megabytes": [arguments.megabytes, arguments.megabytes * arguments.factor],
        "documents": [size["documents"] for size in sizes],
        "seconds": [round(sum(step["seconds"] for step in size["steps"].values()), 1) for size in sizes],
        **compare(*sizes),
        "hardware": hardware("numpy", "sentencepiece"),
    }
    show(result)
    if arguments.record:
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
