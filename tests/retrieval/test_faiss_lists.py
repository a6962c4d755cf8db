"""Inverted lists filled by shards and merged: the bytes of the serial index, bounded memory, rows taken out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retro.config.prep_index import ENCODE_BLOCK, VectorIndexConfig
from retro.retrieval.vectors import VectorStore
from tests.retrieval.faiss_vectors import clustered

faiss = pytest.importorskip("faiss", reason="faiss is not installed")

FACTORIES = [
    "IVF16,Flat",
    "IVF16,SQ8",
    "IVF16,SQfp16",
    "OPQ4_8,IVF16,PQ4",
    "PCA8,IVF16,SQ8",
    "IVF16_HNSW8,RaBitQ",
    "IVF16_HNSW8,PQ4",
]


def _trained(factory: str, store: VectorStore, metric: str = "l2"):
    from retro.retrieval.faiss_training import train_index

    config = VectorIndexConfig(factory=factory, train_sample=2000)
    return train_index(store, metric, factory, config).index  # type: ignore[arg-type]


def _serial(index, store: VectorStore, stop: int, path: Path) -> bytes:
    """The index as one process fills and faiss writes it."""
    for first in range(0, stop, ENCODE_BLOCK):
        block = store.gather(np.arange(first, min(first + ENCODE_BLOCK, stop)))
        rows = np.flatnonzero((block != 0).any(axis=1))
        index.add_with_ids(block[rows], first + rows)
    faiss.write_index(index, str(path))
    index.reset()
    return path.read_bytes()


@pytest.mark.parametrize("limit", [1 << 28, 20_000])
@pytest.mark.parametrize("factory", FACTORIES)
def test_sharded_is_serial(factory: str, limit: int, tmp_path: Path) -> None:
    from retro.retrieval.faiss_lists import encode_rows, has_plain_lists, write_merged

    store = clustered(2 * ENCODE_BLOCK + 3000)
    index = _trained(factory, store)
    assert has_plain_lists(index)
    shards = []
    for start in range(0, len(store), ENCODE_BLOCK):
        shards.append(encode_rows(index, store, start, min(start + ENCODE_BLOCK, len(store))))
        assert index.ntotal == 0
    assert write_merged(index, shards, tmp_path / "merged", limit) == len(store) - 2
    assert (tmp_path / "merged").read_bytes() == _serial(index, store, len(store), tmp_path / "serial")


@pytest.mark.parametrize("stop", [1, 20, 100])
def test_mostly_empty_lists(stop: int, tmp_path: Path) -> None:
    """faiss writes the sizes in another form where few lists have entries."""
    from retro.retrieval.faiss_lists import encode_rows, write_merged

    store = clustered()
    index = _trained("IVF64,SQ8", store)
    write_merged(index, [encode_rows(index, store, 0, stop)], tmp_path / "merged")
    assert (tmp_path / "merged").read_bytes() == _serial(index, store, stop, tmp_path / "serial")


def test_no_entry_at_all(tmp_path: Path) -> None:
    from retro.retrieval.faiss_lists import encode_rows, write_merged

    store = VectorStore([clustered().gather(np.arange(2000)), np.zeros((10, 16), np.float32)])
    index = _trained("IVF16,Flat", store)
    assert write_merged(index, [encode_rows(index, store, 2000, 2010)], tmp_path / "merged") == 0
    assert faiss.read_index(str(tmp_path / "merged")).ntotal == 0


def test_encoding_is_the_same_for_any_number_of_threads() -> None:
    from retro.retrieval.faiss_lists import encode_rows

    store = clustered(ENCODE_BLOCK + 500, 32)
    index = _trained("OPQ4_8,IVF64,PQ4", store)
    found = []
    before = faiss.omp_get_max_threads()
    try:
        for threads in (1, 3):
            faiss.omp_set_num_threads(threads)
            found.append([part.tobytes() for part in encode_rows(index, store, 0, len(store))])
            assert faiss.omp_get_max_threads() == threads
    finally:
        faiss.omp_set_num_threads(before)
    assert found[0] == found[1]


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "HNSW8", "IVF16,RaBitQ,Refine(SQ8)", "IVF16,PQ4x4fs"])
def test_other_indexes_are_not_taken_for_lists(factory: str) -> None:
    from retro.retrieval.faiss_lists import has_plain_lists

    assert not has_plain_lists(_trained(factory, clustered()))


def test_rows_taken_out_leave_what_was_made_without_them(tmp_path: Path) -> None:
    from retro.retrieval.faiss_lists import encode_rows, without_ids, write_merged

    store = clustered()
    removed = np.array([0, 7, 700, 1999])
    index = _trained("IVF16,SQ8", store)
    left = without_ids(encode_rows(index, store, 0, 2000), removed)
    redacted = store.gather(np.arange(2000))
    redacted[removed] = 0
    again = encode_rows(index, VectorStore([redacted]), 0, 2000)
    for one, other in zip(left, again, strict=True):
        np.testing.assert_array_equal(one, other)
    write_merged(index, [left], tmp_path / "merged")
    assert faiss.read_index(str(tmp_path / "merged")).ntotal == 1998 - 4


def test_a_file_larger_than_the_memory_allowed_is_merged_and_searched(tmp_path: Path) -> None:
    """48 MB of entries; merging and searching may each take less than half of that in memory of their own."""
    code = f"""
import sys
from pathlib import Path
import numpy as np
from retro.retrieval.native import load_faiss
faiss = load_faiss()
from retro.retrieval.faiss_index import FaissIndex, Part, SearchSettings, read_faiss
from retro.retrieval.faiss_lists import write_merged
from retro.retrieval.faiss_training import make_index
from retro.retrieval.vectors import VectorStore

def own():  # memory that no file backs, in bytes
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(l for l in lines if l.startswith("RssAnon")).split()[1]) * 1024

folder, n, d = Path({str(tmp_path)!r}), 90_000, 128
generator = np.random.default_rng(0)
vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, (n, d))
for first in range(0, n, 10_000):
    vectors[first:first + 10_000] = generator.normal(size=(10_000, d))
index = make_index(d, "IVF256,Flat", "l2")
index.train(np.array(vectors[:10_000]))
sizes = np.sort(generator.integers(0, 256, n)).astype(np.int32)
np.save(folder / "lists.npy", sizes)
np.save(folder / "ids.npy", np.arange(n))
codes = np.lib.format.open_memmap(folder / "codes.npy", "w+", np.uint8, (n, 4 * d))
for first in range(0, n, 10_000):
    codes[first:first + 10_000] = np.array(vectors[first:first + 10_000]).view(np.uint8)
codes.flush(), vectors.flush()
shard = tuple(np.load(folder / (name + ".npy"), mmap_mode="r") for name in ("lists", "ids", "codes"))
import ctypes, gc
gc.collect(); ctypes.CDLL(None).malloc_trim(0)
before, worst = own(), 0
import retro.retrieval.faiss_lists as module
collect = module._collect
def watched(*arguments):
    global worst
    entries = collect(*arguments)
    worst = max(worst, own() - before)
    return entries
module._collect = watched
write_merged(index, [shard], folder / "merged", limit=2 << 20)
size = (folder / "merged").stat().st_size
before = own()
store = VectorStore([np.load(folder / "vectors.npy", mmap_mode="r")])
search = FaissIndex([Part(read_faiss(folder / "merged"))], store, "l2", SearchSettings(probes=256), threads=1)
ids = search.search(store.gather(np.arange(64)), 5)[1]
assert (ids[:, 0] >= 0).all()
print(size, worst, own() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    size, merging, searching = map(int, done.stdout.split())
    assert size > 46_000_000 and 0 < merging < size // 2 and searching < size // 2


def test_the_file_can_be_moved(tmp_path: Path) -> None:
    """One file without a path in it."""
    from retro.retrieval.faiss_index import FaissIndex, Part, SearchSettings, read_faiss
    from retro.retrieval.faiss_lists import encode_rows, write_merged

    store = clustered()
    index = _trained("IVF16,Flat", store)
    (tmp_path / "here").mkdir()
    write_merged(index, [encode_rows(index, store, 0, 2000)], tmp_path / "here" / "index")
    queries = store.gather(np.arange(100, 120))
    found = [Part(read_faiss(tmp_path / "here" / "index"))]
    before = FaissIndex(found, store, "l2", SearchSettings(16)).search(queries, 5)
    (tmp_path / "here").rename(tmp_path / "there")
    assert list((tmp_path / "there").iterdir()) == [tmp_path / "there" / "index"]
    moved = [Part(read_faiss(tmp_path / "there" / "index"))]
    after = FaissIndex(moved, store, "l2", SearchSettings(16)).search(queries, 5)
    assert all(one.tobytes() == other.tobytes() for one, other in zip(before, after, strict=True))
    assert str(tmp_path).encode() not in (tmp_path / "there" / "index").read_bytes()
