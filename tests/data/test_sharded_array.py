"""Arrays over several files against one array in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro.data.document_table import DocumentOffsets, GroupKeys
from retro.data.sharded_array import ShardedArray, by_shard

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=6)


@given(sizes=SIZES, width=st.sampled_from([None, 3]), data=st.data())
def test_rows_ranges_and_blocks(sizes: list[int], width: int | None, data: st.DataObject) -> None:
    total = sum(sizes)
    whole = np.arange(total * (width or 1), dtype=np.int32).reshape((total, width) if width else (total,))
    array = ShardedArray(np.split(whole, np.cumsum(sizes)[:-1]))
    assert len(array) == total and array.shape == whole.shape and array.dtype == np.int32
    assert np.array_equal(np.asarray(array), whole) and np.asarray(array).dtype == np.int32
    start, stop = sorted(data.draw(st.tuples(st.integers(-3, 40), st.integers(-3, 40))))
    assert np.array_equal(array[start:stop], whole[start:stop])
    rows = data.draw(st.integers(1, 20))
    assert [len(block) for block in array.blocks(rows)] == [len(whole[i : i + rows]) for i in range(0, total, rows)]
    assert np.array_equal(np.concatenate([whole[:0], *array.blocks(rows)]), whole)
    if total:
        ids = np.array(data.draw(st.lists(st.integers(0, total - 1), max_size=200)), np.int64)
        assert np.array_equal(array[ids], whole[ids])
        assert np.array_equal(array[ids.reshape(1, -1, 1)], whole[ids.reshape(1, -1, 1)])
        assert np.array_equal(array[int(total - 1)], whole[total - 1])
        if width:
            assert np.array_equal(array.take(ids, columns=2), whole[ids][:, :2])
    for wrong in (-1, total):
        with pytest.raises(IndexError, match="rows: expected 0 to"):
            array[wrong]
    with pytest.raises(IndexError, match="step 2"):
        array[::2]
    with pytest.raises(IndexError, match="expected integers"):
        array[np.array([0.5])]


@given(sizes=SIZES, count=st.integers(0, 300), seed=st.integers(0, 99))
def test_every_row_is_told_its_shard_once(sizes: list[int], count: int, seed: int) -> None:
    first = np.cumsum([0, *sizes])
    if not first[-1]:
        return
    rows = np.random.default_rng(seed).integers(0, first[-1], count)
    seen = np.full(count, -1)
    for where, shard, local in by_shard(first, rows):
        seen[where] = first[shard] + local
        assert (np.asarray(local) < sizes[shard]).all()
    assert np.array_equal(seen, rows)


@given(sizes=st.lists(st.lists(st.integers(1, 5), max_size=6), min_size=1, max_size=4), data=st.data())
def test_offsets_of_documents(sizes: list[list[int]], data: st.DataObject) -> None:
    flat = [n for part in sizes for n in part]
    whole = np.cumsum([0, *flat])
    parts = [np.cumsum([0, *part]) for part in sizes]
    offsets = DocumentOffsets(parts, np.cumsum([0] + [int(part[-1]) for part in parts]))
    assert len(offsets) == len(whole) and offsets.shape == whole.shape
    assert np.array_equal(np.asarray(offsets), whole)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, 30), st.integers(0, 30))))
    assert np.array_equal(offsets[start:stop], whole[start:stop])
    ids = np.array(data.draw(st.lists(st.integers(0, len(flat)), max_size=100)), np.int64).reshape(-1, 1)
    assert np.array_equal(offsets[ids], whole[ids]) and offsets[len(flat)] == whole[-1]
    for wrong in (-1, len(flat) + 1):
        with pytest.raises(IndexError, match="documents: expected 0 to"):
            offsets[wrong]


def test_a_document_without_a_group_is_its_own() -> None:
    groups = ShardedArray([np.array([7, 0], np.uint64), np.array([0, 9, 7], np.uint64)])
    keys = ShardedArray([np.array([1, 2, 3, 4], np.uint64), np.array([5], np.uint64)])
    table = GroupKeys(groups, keys)
    assert np.asarray(table).tolist() == [7, 2, 3, 9, 7] and np.asarray(table).dtype == np.uint64
    assert table[1] == 2 and table[np.array([[0], [2]])].tolist() == [[7], [3]] and table[3:].tolist() == [9, 7]


MANY_FILES = """
import resource, sys
from pathlib import Path
import numpy as np
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 600))
from retro.data.sharded_array import open_sharded
shards = [{"name": f"{i:05d}", "rows": 2} for i in range(200)]
for i in range(200):
    np.save(Path(sys.argv[1]) / f"part-{i:05d}.npy", np.array([2 * i, 2 * i + 1]))
array = open_sharded(Path(sys.argv[1]), "part", shards, np.int64)
assert np.array_equal(np.asarray(array), np.arange(400))
"""


def test_more_files_than_a_process_may_open_at_first(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MANY_FILES, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
