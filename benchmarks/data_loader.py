"""Tokens per second that the data set delivers with neighbors attached, on one core.

    python benchmarks/data_loader.py [--record] [--repeats 15] [--seconds 0.5]

Sequence length 512 in chunks of 64, 2 neighbors of 128 tokens, random sequences in batches of 8; what is counted are
the sequence tokens (512 per sequence), as the training loop counts them. Synthetic data, 8 million tokens, documents of
about 600 tokens, every chunk with 2 neighbors drawn at random over the whole store; warm page cache.

  on          RetroDataset with retrieval, as in training (neighbors that serve no scored position are not read)
  all         the same with one long document per sequence, where every chunk but the last needs its neighbors
  sharded     as `on`, tokens in 16 shards, chunks in 16 and the table in 64
  off         the same data set without retrieval
  packed      PackedDataset with retrieval, as in training: no padding, neighbors of about as many chunks as in `on`
  packed_sharded, packed_off: the same in the shards of `sharded`, and without retrieval
  loader      TrainLoader around `on`: with the thread that prepares batches
  to_torch    `on`, and the batch as tensors
  reference   one Python loop over sequences, chunks and neighbors with plain slices of the memory maps

Each is run for `--seconds` after a warm-up, `--repeats` times, in turn (a b c a b c ...), so that other load on the
machine hits all alike. Reported: median, quartiles, and the target of 10 million. --record writes
benchmarks/records/data_loader.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from retro.data.batch import RetroBatch
from retro.data.dataset import RetroDataset
from retro.data.loader import TrainLoader
from retro.data.neighbor_table import open_neighbor_table
from retro.data.packed_dataset import PackedDataset
from retro.data.text_dataset import TextDataset

sys.path.insert(0, str(Path(__file__).parents[1]))  # the builders of the tests are not installed

from tests.data import builders

LENGTH, CHUNK, NEIGHBORS, BATCH = 512, 64, 2, 8
CHUNKS, RETRIEVED = LENGTH // CHUNK, 2 * CHUNK
TOKENS, VOCABULARY, TARGET = 8_000_000, 16384, 10_000_000
RECORD = Path(__file__).parent / "records" / "data_loader.json"


def build(root: Path, document_length: Callable[[np.random.Generator], int], shards: tuple[int, int, int]) -> Any:
    """A data set on disk: (queries and database, neighbor table)."""
    generator = np.random.default_rng(0)
    lengths = []
    while sum(lengths) < TOKENS:
        lengths.append(document_length(generator))
    text = generator.integers(4, VOCABULARY, size=sum(lengths)).astype(np.int64)
    documents = [part.tolist() for part in np.split(text, np.cumsum(lengths)[:-1])]
    tokenizer = builders.write_fake_tokenizer(root / "tokenizer", VOCABULARY)
    groups = [[documents[i] for i in part] for part in np.array_split(np.arange(len(documents)), shards[0])]
    tokens = builders.write_tokens(root / "tokens", groups, tokenizer, vocab_size=VOCABULARY)
    chunks = builders.write_chunks(root / "chunks", tokens, CHUNK, shards=shards[1])
    store = builders.open_chunk_store(chunks)
    table = generator.integers(0, store.num_chunks, size=(store.num_chunks, 20))
    # As in a real table, none is of the chunk's own document: such a draw is replaced by a chunk of the next one.
    own = store.documents(np.arange(store.num_chunks))
    clash = store.documents(table) == own[:, None]
    table[clash] = (table[clash] + store.num_chunks // 2) % store.num_chunks
    neighbors = builders.write_neighbors(root / "neighbors", chunks, chunks, table, shards=shards[2])
    return store, open_neighbor_table(neighbors, store, store)


def dataset(store: Any, table: Any, **options: Any) -> RetroDataset:
    """The data set of the benchmark."""
    return RetroDataset(store, store, table, sequence_length=LENGTH, num_neighbors=NEIGHBORS, pad_id=0, **options)


def packed(store: Any, table: Any, **options: Any) -> PackedDataset:
    """The same documents, packed."""
    return PackedDataset(store, store, table, sequence_length=LENGTH, num_neighbors=NEIGHBORS, pad_id=0, **options)


def random_batches(data: TextDataset) -> Iterator[RetroBatch]:
    """Batches of random sequences, for ever."""
    generator = np.random.default_rng(1)
    while True:
        yield data.__getitems__(generator.integers(0, len(data), size=BATCH))


def reference_batches(data: RetroDataset) -> Iterator[tuple[np.ndarray, ...]]:
    """The same content in the obvious way: loops over sequences, chunks and neighbors, a slice each."""
    generator = np.random.default_rng(1)
    chunks, folder = data.queries.folder, data.queries.tokens.folder
    tokens = np.memmap(folder / "tokens-00000.bin", dtype=np.uint16, mode="r")
    offsets = np.load(folder / "offsets-00000.npy", mmap_mode="r")
    starts = np.load(chunks / "starts-00000.npy", mmap_mode="r")
    documents = np.load(chunks / "documents-00000.npy", mmap_mode="r")
    assert data.neighbors is not None
    ids = np.load(data.neighbors.folder / "ids-00000.npy", mmap_mode="r")
    while True:
        inputs = np.zeros((BATCH, LENGTH), np.int32)
        targets, scored = np.zeros_like(inputs), np.zeros(inputs.shape, bool)
        # Those of the last chunk serve no scored position.
        neighbors = np.zeros((BATCH, CHUNKS - 1, NEIGHBORS, RETRIEVED), np.int32)
        mask = np.zeros(neighbors.shape, bool)
        for row, sample in enumerate(generator.integers(0, len(data), size=BATCH)):
            touched = set(documents[int(sample) * CHUNKS : (int(sample) + 1) * CHUNKS].tolist())
            for u in range(CHUNKS):
                chunk = int(sample) * CHUNKS + u
                if chunk >= len(starts):
                    break
                start, end = int(starts[chunk]), int(offsets[documents[chunk] + 1])
                run = tokens[start : min(start + CHUNK, end)]
                inputs[row, u * CHUNK : u * CHUNK + len(run)] = run
                following = tokens[start + 1 : min(start + CHUNK + 1, end)]
                targets[row, u * CHUNK : u * CHUNK + len(following)] = following
                scored[row, u * CHUNK : u * CHUNK + len(following)] = True
                if u == CHUNKS - 1 or end <= start + CHUNK:
                    continue
                j = 0
                for neighbor in ids[chunk].tolist():
                    if j == NEIGHBORS or neighbor < 0:
                        break
                    if len(touched) > 1 and int(documents[neighbor]) in touched:
                        continue
                    first, last = int(starts[neighbor]), int(offsets[documents[neighbor] + 1])
                    run = tokens[first : min(first + RETRIEVED, last)]
                    neighbors[row, u, j, : len(run)] = run
                    mask[row, u, j, : len(run)] = True
                    j += 1
            scored[row, -1] = False
        yield inputs, targets, scored, neighbors, mask


def check_equal(data: RetroDataset) -> None:
    """What is compared must be the same work."""
    batch, expected = next(random_batches(data)), next(reference_batches(data))
    names = ("tokens_BN", "targets_BN", "loss_mask_BN", "neighbors_BLKR", "neighbor_mask_BLKR")
    for name, array in zip(names, expected, strict=True):
        assert np.array_equal(getattr(batch, name), array), name


def as_tensors(batches: Iterator[RetroBatch]) -> Iterator[Any]:
    """Each batch as tensors, on one thread."""
    import torch

    torch.set_num_threads(1)
    for batch in batches:
        yield batch.to_torch()


def measure(batches: Iterator[Any], seconds: float) -> tuple[float, float]:
    """(tokens per second of wall time, per second of this process's CPU time) over at least `seconds`."""
    count, started, cpu = 0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - started) < seconds:
        for _ in range(4):
            next(batches)
        count += 4 * BATCH * LENGTH
    return count / elapsed, count / (time.process_time() - cpu)


def cpu_model() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        usual = build(root / "usual", lambda g: int(g.integers(100, 1100)), (1, 1, 1))
        long = build(root / "long", lambda g: 64 * LENGTH - 2, (1, 1, 1))
        sharded = build(root / "sharded", lambda g: int(g.integers(100, 1100)), (16, 16, 64))
        on = dataset(*usual)
        check_equal(on)
        loader = TrainLoader(on, global_batch=BATCH, micro_batch=BATCH)
        cases: dict[str, Iterator[Any]] = {
            "on": random_batches(on),
            "all": random_batches(dataset(*long)),
            "sharded": random_batches(dataset(*sharded)),
            "off": random_batches(dataset(*usual, retrieval="off")),
            "packed": random_batches(packed(*usual)),
            "packed_sharded": random_batches(packed(*sharded)),
            "packed_off": random_batches(packed(*usual, retrieval="off")),
            "loader": iter(loader),
            "to_torch": as_tensors(random_batches(on)),
            "reference": reference_batches(on),
        }
        for batches in cases.values():
            measure(batches, options.seconds)
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
        for _ in range(options.repeats):
            for name, batches in cases.items():
                rates[name].append(measure(batches, options.seconds))
        result = {}
        print(f"{'':14s} {'Mtok/s wall: median':>20s} {'quartiles':>16s} {'per CPU second':>15s}")
        for name, pairs in rates.items():
            wall, cpu = [w for w, _ in pairs], [c for _, c in pairs]
            low, middle, high = statistics.quantiles(wall, n=4)
            result[name] = {
                "tokens_per_second": round(middle),
                "quartiles": [round(low), round(high)],
                "tokens_per_cpu_second": round(statistics.median(cpu)),
                "repeats": len(wall),
            }
            spread = f"{low / 1e6:.1f} to {high / 1e6:.1f}"
            print(f"{name:14s} {middle / 1e6:20.1f} {spread:>16s} {statistics.median(cpu) / 1e6:15.1f}")
        reached = result["on"]["tokens_per_second"] / TARGET
        over = result["on"]["tokens_per_second"] / result["reference"]["tokens_per_second"]
        packing = result["packed"]["tokens_per_second"] / TARGET
        print(f"packed: {packing:.1f} times the target")
        print(f"on: {reached:.1f} times the target of {TARGET / 1e6:.0f} Mtok/s, {over:.1f} times the reference")
        if options.record:
            import torch

            record = {
                "benchmark": "data_loader",
                "command": "python benchmarks/data_loader.py --record",
                "configuration": {
                    "sequence_length": LENGTH,
                    "chunk_length": CHUNK,
                    "neighbors": NEIGHBORS,
                    "retrieved": RETRIEVED,
                    "batch": BATCH,
                    "tokens": TOKENS,
                    "seconds": options.seconds,
                    "threads": 1,
                },
                "target_tokens_per_second": TARGET,
                "results": result,
                "versions": {
                    "python": platform.python_version(),
                    "numpy": np.__version__,
                    "torch": torch.__version__,
                },
                "hardware": {"cpu": cpu_model(), "cores": os.cpu_count(), "system": platform.system()},
                "load_average": [round(value, 2) for value in os.getloadavg()],
                "date": time.strftime("%Y-%m-%d", time.gmtime()),
            }
            RECORD.parent.mkdir(exist_ok=True)
            RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
