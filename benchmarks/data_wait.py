"""Share of the step time that training waits for data, at the rate of a GPU that is not here.

    python benchmarks/data_wait.py [--seconds 5] [--repeats 3] [--tokens 32000000] [--mfu 0.5] [--device H100]
                                   [--models xl_retro ...] [--record]

A consumer takes micro-batches from TrainLoader as the trainer does, hands them over as tensors, and then is busy for as
long as the GPU would compute: the model's operations per micro-batch (retro/model/flops.py, all neighbors there) over
--mfu of the device's peak. That is high on purpose: a GPU that computes faster waits more. Waiting is what the trainer
counts as such: the time inside `next(batches)`, over that of whole steps; the first batch of a run is left out.

  xl_retro    the largest preset that fits the device by calculation (`retro train --plan`: one GPU, all activations
              recomputed, the micro-batch of the run), found by trying them all
  small_retro the smallest preset: the most tokens per second, for the margin

Each with both layouts (chunks, documents) and:

  thread      loader_workers: 0, the consumer sleeps while the GPU computes
  python      the same, but the consumer runs Python for half of that time, as it does while it starts kernels: the
              thread that prepares batches then competes with it for the interpreter
  workers     loader_workers: 2
  cold        `thread`, with the release's files thrown out of the page cache before each repeat (posix_fadvise): what
              a run meets whose corpus is larger than memory, at the speed of this disk; read_mb tells what was read

2048 tokens in chunks of 64, 2 neighbors of 128 tokens, micro-batches of 4, 8 of them per step; a synthetic release in a
temporary folder: --tokens random tokens in documents of about 600, 16 shards, every chunk with 20 stored neighbors.
`loader_tokens_per_s` is what the loader reaches when nothing is computed. Also timed: the time to the first batch and
the order of an epoch of 100 million sequences, whose first batch waits for it (--order to change, 0 = leave out).
--record writes benchmarks/records/data_wait.json. Target: below 2 %.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the builders of the tests are not installed

import numpy as np

from benchmarks.text_corpus import hardware
from retro.config.model import ModelConfig
from retro.config.plan import PlanConfig
from retro.config.train import TrainConfig
from retro.data.dataset import RetroDataset
from retro.data.document import document_key
from retro.data.loader import TrainLoader
from retro.data.neighbor_table import open_neighbor_table
from retro.data.order import SampleStream
from retro.data.packed_dataset import PackedDataset
from retro.data.text_dataset import Options, TextDataset
from retro.model.presets import load_preset, preset_names
from retro.train.plan.plan import Plan, make_plan
from tests.data import builders

RECORD = Path(__file__).parent / "records" / "data_wait.json"
LENGTH, CHUNK, NEIGHBORS, KEPT, MICRO, PER_STEP = 2048, 64, 2, 20, 4, 8
VOCABULARY, SHARDS, TARGET = 51200, 16, 0.02
WAYS = ("thread", "python", "workers", "cold")
LAYOUTS = ("chunks", "documents")


def build(root: Path, tokens: int) -> None:
    """A database and its neighbor table on disk, made without loops over tokens or chunks."""
    generator = np.random.default_rng(0)
    lengths = np.maximum(8, generator.lognormal(6.0, 0.9, size=tokens // 600)).astype(np.int64)
    tokenizer = builders.write_fake_tokenizer(root / "tokenizer", VOCABULARY)
    folder = root / "tokens"
    folder.mkdir()
    begins = np.concatenate([[0], np.cumsum(lengths)])
    rows = []
    for shard, part in enumerate(np.array_split(np.arange(len(lengths)), SHARDS)):
        ends = begins[part[-1] + 1] - begins[part[0]]
        text = generator.integers(4, VOCABULARY, size=ends, dtype=np.uint16)
        text.tofile(folder / f"tokens-{shard:05d}.bin")
        np.save(folder / f"offsets-{shard:05d}.npy", begins[part[0] : part[-1] + 2] - begins[part[0]])
        keys = [document_key(f"doc-{i}") for i in part.tolist()]
        np.save(folder / f"keys-{shard:05d}.npy", np.array(keys, np.uint64))
        lines = [json.dumps({"id": f"doc-{i}", "title": "", "source": "", "group": "g"}) for i in part.tolist()]
        (folder / f"docs-{shard:05d}.jsonl").write_text("\n".join(lines) + "\n")
        rows.append((f"{shard:05d}", len(part)))
    order = generator.permutation(len(lengths))
    np.save(folder / "order.npy", order)
    stats = {"dtype": "uint16", "vocab_size": VOCABULARY, "bos_id": builders.BOS, "eos_id": builders.EOS}
    builders.write_artifact(folder, "tokens", {"splits": ["train"]}, {"tokenizer": tokenizer}, rows, stats)

    chunks = root / "chunks"
    chunks.mkdir()
    counts = -(-lengths[order] // CHUNK)
    documents = np.repeat(order, counts)
    place = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
    columns = {
        "starts": begins[documents] + place * CHUNK,
        "documents": documents,
        "spans": lengths[documents] - place * CHUNK,
    }
    parts = np.array_split(np.arange(len(documents)), SHARDS)
    for shard, part in enumerate(parts):
        for name, column in columns.items():
            np.save(chunks / f"{name}-{shard:05d}.npy", np.ascontiguousarray(column[part]))
    names = [(f"{shard:05d}", len(part)) for shard, part in enumerate(parts)]
    builders.write_artifact(chunks, "chunks", {"chunk_length": CHUNK}, {"tokens": folder}, names)

    store = builders.open_chunk_store(chunks)
    table = generator.integers(0, store.num_chunks, size=(store.num_chunks, KEPT))
    # As in a real table, none is of the chunk's own document: such a draw is replaced by a chunk from far away.
    clash = documents[table] == documents[:, None]
    table[clash] = (table[clash] + store.num_chunks // 2) % store.num_chunks
    builders.write_neighbors(root / "neighbors", chunks, chunks, table, shards=SHARDS)


def open_data(root: Path, layout: str) -> TextDataset:
    """The data set, its files mapped anew."""
    store = builders.open_chunk_store(root / "chunks")
    table = open_neighbor_table(root / "neighbors", store, store)
    options = Options(sequence_length=LENGTH, num_neighbors=NEIGHBORS, pad_id=0)
    return (
        PackedDataset(store, store, table, **options)
        if layout == "documents"
        else RetroDataset(store, store, table, **options)
    )


def plan(model: ModelConfig, device: str, mfu: float) -> Plan:
    """What a run of these sizes needs on one device, by calculation."""
    size = model if model.vocab_size is not None else dataclasses.replace(model, vocab_size=VOCABULARY)
    return make_plan(
        TrainConfig(
            name="data-wait",
            release="synthetic",
            model=size,
            sequence_length=LENGTH,
            num_neighbors=NEIGHBORS,
            micro_batch=MICRO,
            global_batch=MICRO * PER_STEP,
            activation_checkpointing=("decoder", "cross_attention", "encoder"),
            plan=PlanConfig(device=device, mfu=mfu),
        )
    )


def largest_that_fits(device: str, mfu: float) -> str:
    """The RETRO preset of most parameters whose run fits one device."""
    plans = {name: plan(load_preset(name), device, mfu) for name in preset_names() if load_preset(name).is_retro}
    fitting = {name: sum(found.parameters.values()) for name, found in plans.items() if found.fits}
    return max(fitting, key=lambda name: fitting[name])


def forget(root: Path) -> None:
    """Throw the files below out of the page cache; what a living map has touched stays."""
    gc.collect()
    os.sync()
    for path in root.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def read_from_disk() -> int:
    """Bytes that this process has had read from storage."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def compute(seconds: float, in_python: float) -> None:
    """As long as the GPU would compute, the share `in_python` of it running Python."""
    ends = time.perf_counter() + seconds
    python_until = ends - seconds * (1 - in_python)
    while time.perf_counter() < python_until:
        pass
    time.sleep(max(0.0, ends - time.perf_counter()))


def consume(loader: TrainLoader, seconds: float, in_python: float, duration: float) -> dict[str, float]:
    """Train, without a model: seconds per micro-batch as computed; until `duration` seconds and two steps are over."""
    batches = iter(loader)
    started = time.perf_counter()
    next(batches).to_torch()
    first = time.perf_counter() - started
    waits, steps = [], []
    try:
        begin = time.perf_counter()
        while len(steps) < 2 or time.perf_counter() - begin < duration:
            step = time.perf_counter()
            for _ in range(PER_STEP):
                asked = time.perf_counter()
                batch = next(batches)
                waits.append(time.perf_counter() - asked)
                batch.to_torch()
                compute(seconds, in_python)
            steps.append(time.perf_counter() - step)
    finally:
        batches.close()  # type: ignore[attr-defined]
    return {"share": sum(waits) / sum(steps), "longest_ms": 1e3 * max(waits), "first_batch_s": first}


def loader_rate(data: TextDataset, duration: float) -> float:
    """Tokens per second of the loader when nothing is computed."""
    batches = iter(TrainLoader(data, global_batch=MICRO * PER_STEP, micro_batch=MICRO))
    for _ in range(4):
        next(batches)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < duration:
        next(batches)
        count += 1
    batches.close()  # type: ignore[attr-defined]
    return count * MICRO * LENGTH / (time.perf_counter() - started)


def one_run(root: Path, layout: str, way: str, step_seconds: float, duration: float, seed: int) -> dict[str, float]:
    """A run of one model, layout and way."""
    if way == "cold":
        forget(root)
    workers = 2 if way == "workers" else 0
    loader = TrainLoader(
        open_data(root, layout), global_batch=MICRO * PER_STEP, micro_batch=MICRO, seed=seed, num_workers=workers
    )
    before = read_from_disk()
    found = consume(loader, step_seconds / PER_STEP, 0.5 if way == "python" else 0.0, duration)
    return {**found, "read_mb": (read_from_disk() - before) / 1e6}


def summary(runs: list[dict[str, float]]) -> dict[str, float]:
    """Medians over the repeats, and the longest wait."""
    shares = [100 * one["share"] for one in runs]
    return {
        "wait_percent": round(statistics.median(shares), 3),
        "lowest": round(min(shares), 3),
        "highest": round(max(shares), 3),
        "longest_wait_ms": round(max(one["longest_ms"] for one in runs), 2),
        "first_batch_s": round(statistics.median(one["first_batch_s"] for one in runs), 3),
        "read_mb": round(statistics.median(one["read_mb"] for one in runs), 1),
    }


def measure(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All models, layouts and ways, in turn."""
    build(root, options.tokens)
    largest = largest_that_fits(options.device, options.mfu)
    result: dict[str, Any] = {"largest_preset": largest, "models": {}}
    result["loader_tokens_per_s"] = {
        layout: round(loader_rate(open_data(root, layout), min(2.0, options.seconds))) for layout in LAYOUTS
    }
    for name in options.models or dict.fromkeys([largest, "small_retro"]):
        step_seconds = plan(load_preset(name), options.device, options.mfu).work.step_seconds
        assert step_seconds is not None
        rate = MICRO * PER_STEP * LENGTH / step_seconds
        cases = {}
        for layout in LAYOUTS:
            for way in options.ways:
                found = [one_run(root, layout, way, step_seconds, options.seconds, n) for n in range(options.repeats)]
                cases[f"{layout} {way}"] = summary(found)
                print(f"{name} at {rate:,.0f} tokens/s, {layout} {way}: {cases[f'{layout} {way}']}", flush=True)
        below = all(case["wait_percent"] < 100 * TARGET for case in cases.values())
        result["models"][name] = {"gpu_tokens_per_s": round(rate), "below_target": below, "cases": cases}
    if options.order:
        started = time.perf_counter()
        stream = SampleStream(options.order, seed=0)
        stream.take(0, MICRO)
        begun = time.perf_counter() - started
        started = time.perf_counter()
        stream.take(options.order // 2, options.order // 2 + MICRO)
        result["order"] = {
            "sequences": options.order,
            "first_s": round(begun, 2),
            "next_piece_s": round(time.perf_counter() - started, 3),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32_000_000)
    parser.add_argument("--mfu", type=float, default=0.5)
    parser.add_argument("--device", default="H100")
    parser.add_argument("--models", nargs="+", default=[])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--order", type=int, default=100_000_000)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options)
    sizes = {
        "sequence_length": LENGTH,
        "micro_batch": MICRO,
        "micro_batches_per_step": PER_STEP,
        "neighbors": NEIGHBORS,
        "chunk_length": CHUNK,
        "tokens": options.tokens,
        "shards": SHARDS,
    }
    settings = {"device": options.device, "mfu": options.mfu, "seconds": options.seconds, "repeats": options.repeats}
    found = {**sizes, **settings, "target_percent": 100 * TARGET, **found}
    print(json.dumps(found, indent=1))
    if options.record:
        RECORD.write_text(json.dumps({"hardware": hardware("torch", "numpy"), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
