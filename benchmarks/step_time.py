"""Step time and peak memory of RETRO over GPT, and over RETRO-pytorch, interleaved in one process.

    python benchmarks/step_time.py [--bf16] [--models gpt retro fast] [--memory] [--rounds 10] [--threads 2] [--record]

The models (benchmarks/step_models.py) take one training step each in turn (A B C A B C ...), so that noise of the
machine hits all alike: forward, backward, AdamW; no data loading.

  plain         a self-contained GPT written here, on scaled_dot_product_attention with torch's own cross-entropy;
  gpt           RetroModel without RETRO layers;
  retro         RetroModel with chunked cross-attention at layers 2, 5, 8 and a 2-layer encoder, fed as the data set
                feeds it in training: the neighbors of a sequence's last chunk serve no scored position and are masked;
  fast          the same with the encoder of the *_fast presets: one layer of half the width;
  retro_all     retro with all 8 chunks, the last one serving a single position;
  peer          RETRO-pytorch (PyPI retro-pytorch 0.3.9) with the 4 heads it is asked for;
  peer_shipped  RETRO-pytorch as it ships: asked for 4 heads, it has 8. Both always encode all chunks.

The peers need an interpreter that has both them and what this project needs (torch of the same version, numpy, PyYAML,
safetensors), with this repository on its path; without it they are left out, and the reason is printed:

    python3 -m venv PEER
    PEER/bin/pip install torch==2.13.0 pyyaml safetensors "pyarrow<21" "transformers<5" faiss-cpu retro-pytorch==0.3.9
    PYTHONPATH=. PEER/bin/python benchmarks/step_time.py --models gpt retro fast peer peer_shipped --record

Reported: medians, and the median of the ratios within a round with its quartiles, of wall time and of CPU time; and
the multiple of tokens per second over each peer. On a busy machine wall times mean nothing (rounds in which other
processes used more than 0.08 cores are counted, and with fewer than 5 quiet rounds `wall_is_reliable` is false); the
CPU time of a single thread (--threads 1) still does.

--memory measures memory instead of time, each model in a process of its own: peak resident memory after three steps,
and how much of it came after the imports.

All models run with freed memory kept in the process (retro/train/allocator.py), as `retro train` does it;
--allocator default leaves the C library as it is. --record adds the result to benchmarks/records/step_time.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.step_models import BATCH, LENGTH, MODELS, PEERS, build_step, step_flops, why_no_peer
from benchmarks.text_corpus import hardware
from retro.model import count_parameters
from retro.train.allocator import keep_freed_memory

RECORD = Path(__file__).parent / "records" / "step_time.json"


def cpu_seconds() -> tuple[float, float]:
    """(busy seconds of the whole machine, CPU seconds of this process); the first is 0 where /proc is not offered."""
    times = os.times()
    try:
        fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except OSError:
        return 0.0, times.user + times.system
    return (sum(fields[:3]) + sum(fields[5:8])) / os.sysconf("SC_CLK_TCK"), times.user + times.system


def measure_time(names: list[str], rounds: int, warmup: int, bf16: bool, compiled: bool) -> dict[str, Any]:
    """Times of all models, a step each per round."""
    models = {name: build_step(name, bf16, compiled) for name in names}
    for i in range(warmup):
        for _, step in models.values():
            step(i)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    foreign = []
    for i in range(rounds):
        busy, own = cpu_seconds()
        start = time.perf_counter()
        for name, (_, step) in models.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            step(i)
            seconds[name].append(time.perf_counter() - begin)
            cpu[name].append(time.process_time() - begin_cpu)
        busy_after, own_after = cpu_seconds()
        foreign.append(max(0.0, (busy_after - busy) - (own_after - own)) / (time.perf_counter() - start))
    quiet = [i for i, load in enumerate(foreign) if load < 0.08]
    used = quiet if len(quiet) >= 5 else list(range(rounds))
    return {
        "rounds": rounds,
        "quiet_rounds": len(quiet),
        "wall_is_reliable": len(quiet) >= 5,
        "median_foreign_load": round(statistics.median(foreign[i] for i in used), 3),
        "models": {name: time_summary(name, models[name][0], seconds, cpu, used) for name in names},
    }


def time_summary(
    name: str, model: nn.Module, seconds: dict[str, list[float]], cpu: dict[str, list[float]], used: list[int]
) -> dict[str, Any]:
    """One model's times, and its ratios to all others."""
    out: dict[str, Any] = {
        "parameters": count_parameters(model),
        "median_seconds": round(statistics.median(seconds[name][i] for i in used), 4),
        "median_cpu_seconds": round(statistics.median(cpu[name]), 4),
    }
    operations = step_flops(name)
    if operations is not None:
        out["gflop"] = round(operations / 1e9, 1)
    out["tokens_per_second"] = round(BATCH * LENGTH / out["median_seconds"])
    for other in seconds:
        if other == name:
            continue
        out[f"ratio_to_{other}"] = {
            "wall": spread([seconds[name][i] / seconds[other][i] for i in used]),
            "cpu": spread([mine / theirs for mine, theirs in zip(cpu[name], cpu[other], strict=True)]),
        }
        if other in PEERS and name not in PEERS:
            out[f"times_the_tokens_per_second_of_{other}"] = spread(
                [seconds[other][i] / seconds[name][i] for i in used]
            )
    return out


def spread(ratios: list[float]) -> dict[str, Any]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}


def measure_memory(names: list[str], options: list[str], repeats: int) -> dict[str, Any]:
    """Peak memory of every model in processes of their own, in turn."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            command = [sys.executable, str(Path(__file__).resolve()), "--memory-of", name, *options]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    models = {
        name: {key: round(statistics.median(row[key] for row in rows), 1) for key in rows[0]}
        for name, rows in found.items()
    }
    for row in models.values():
        for other in names:
            row |= {f"{key}_ratio_to_{other}": round(row[key] / models[other][key], 3) for key in ("peak", "growth")}
    return {"repeats": repeats, "unit": "MiB", "models": models}


def memory_of(name: str, bf16: bool, compiled: bool) -> dict[str, float]:
    """MiB of this process: highest resident memory after three steps, and growth since the imports."""
    if name in PEERS:
        why_no_peer()  # imported before the baseline, like ours
    before = resident()
    _, step = build_step(name, bf16, compiled)
    for i in range(3):
        step(i)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {"peak": round(peak, 1), "growth": round(peak - before, 1)}


def resident() -> float:
    """MiB of resident memory now; where /proc is not offered, the highest so far."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def available(names: list[str]) -> list[str]:
    """The models that can be built here; says why others are left out."""
    reason = why_no_peer() if any(name in PEERS for name in names) else None
    if reason is not None:
        print(f"left out: {', '.join(n for n in names if n in PEERS)}: retro_pytorch: {reason}", file=sys.stderr)
    return [name for name in names if reason is None or name not in PEERS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast instead of float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile all models")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["plain", "gpt", "retro", "fast"])
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--allocator", choices=("keep", "default"), default="keep")
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds (3 at least); of memory, a third of them")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-of", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--record", action="store_true", help=f"add the result to {RECORD}")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kept = arguments.allocator == "keep" and keep_freed_memory()
    if arguments.memory_of:
        print(json.dumps(memory_of(arguments.memory_of, arguments.bf16, arguments.compile)))
        return
    names = available(list(dict.fromkeys(arguments.models)))
    key = ("bf16" if arguments.bf16 else "fp32") + ("-compile" if arguments.compile else "")
    key += "" if kept else "-default_allocator"
    key += "-peers" if any(name in PEERS for name in names) else ""
    if arguments.memory:
        options = ["--threads", str(arguments.threads), "--allocator", arguments.allocator]
        options += ["--bf16"] * arguments.bf16 + ["--compile"] * arguments.compile
        result = measure_memory(names, options, repeats=max(1, arguments.rounds // 3))
        key += "-memory"
    else:
        result = measure_time(names, arguments.rounds, arguments.warmup, arguments.bf16, arguments.compile)
    result |= {"threads": arguments.threads, "freed_memory_kept": kept}
    result |= {"hardware": hardware(), "torch": torch.__version__}
    print(json.dumps({key: result}, indent=1))
    if not result.get("wall_is_reliable", True):
        print(f"UNRELIABLE: {result['quiet_rounds']} quiet rounds, at least 5 are needed; do not quote wall times")
    if arguments.record:
        records = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(records | {key: result}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
