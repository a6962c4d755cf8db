"""External sorting against numpy's, with memory for a few elements only."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import external_sort
from data_prep.external_sort import find_repeats, sort_runs
from retro.config.errors import ArtifactCorruptError
from retro.data.npy_file import NpyReader, NpyWriter

RECORD = np.dtype([("rank", "<u8"), ("key", "<u8"), ("number", "<i8")])
SMALL = st.integers(0, 6)
WIDE = st.integers(0, 2**64 - 1)


def records(rows: list[tuple[int, int, int]]) -> np.ndarray:
    return np.array(rows, dtype=RECORD)


@given(
    runs=st.lists(st.lists(SMALL | WIDE, max_size=60), max_size=8),
    memory=st.sampled_from([1, 700, 3000, 1 << 20]),
    block=st.sampled_from([64, 64 << 10]),
    files=st.booleans(),
)
def test_numbers_come_out_as_numpy_sorts_them(
    tmp_path_factory: pytest.TempPathFactory, runs: list[list[int]], memory: int, block: int, files: bool
) -> None:
    folder = tmp_path_factory.mktemp("sort")
    arrays: list[Any] = [np.array(run, dtype=np.uint64) for run in runs]
    expected = np.sort(np.concatenate([np.zeros(0, np.uint64), *arrays]))
    counts = Counter(value for run in runs for value in run)
    if files:
        for i, array in enumerate(arrays):
            np.save(folder / f"run{i}.npy", array)
        arrays = [folder / f"run{i}.npy" for i in range(len(runs))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(external_sort, "_SMALLEST_BLOCK", block)  # 64: several levels of merging
        out = sort_runs(iter(arrays), folder / "out.npy", np.uint64, memory)
    found = np.load(out)
    assert found.dtype == np.uint64 and np.array_equal(found, expected)
    repeats = [value for value, count in sorted(counts.items()) if count > 1]
    for rows in (1, 2, 7, 1 << 20):
        assert list(find_repeats(out, block_rows=rows)) == repeats
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith("run")) == ["out.npy"]


@given(
    rows=st.lists(st.tuples(SMALL | WIDE, SMALL, st.integers(-5, 5)), max_size=150),
    parts=st.integers(1, 6),
    memory=st.sampled_from([1, 2000, 1 << 20]),
)
def test_records_come_out_by_their_fields_in_order(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, int]], parts: int, memory: int
) -> None:
    folder = tmp_path_factory.mktemp("sort")
    whole = records(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(external_sort, "_SMALLEST_BLOCK", 512)
        out = sort_runs(np.array_split(whole, parts), folder / "out.npy", RECORD, memory)
    assert np.load(out).tolist() == sorted(rows)
    by_rank = Counter(rank for rank, _, _ in rows)
    assert list(find_repeats(out, "rank", 3)) == [rank for rank, count in sorted(by_rank.items()) if count > 1]
    same = Counter(rows)
    assert list(find_repeats(out)) == [row for row, count in sorted(same.items()) if count > 1]


def test_the_bytes_do_not_depend_on_memory_or_on_the_cut(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    data = np.zeros(20_000, RECORD)
    for name in ("rank", "key"):
        data[name] = generator.integers(0, 300, len(data))
    data["number"] = np.arange(len(data))
    np.save(tmp_path / "expected.npy", data[np.lexsort((data["number"], data["key"], data["rank"]))])
    expected = (tmp_path / "expected.npy").read_bytes()
    for memory, parts in ((1 << 30, 1), (100_000, 1), (100_000, 37), (3_000, 5)):
        sort_runs(np.array_split(data, parts), tmp_path / "out.npy", RECORD, memory)
        assert (tmp_path / "out.npy").read_bytes() == expected, (memory, parts)


@pytest.mark.parametrize("content", ["equal", "sorted", "reversed"])
def test_inputs_that_are_hard_on_a_merge(tmp_path: Path, content: str) -> None:
    data = np.arange(50_000, dtype=np.int64)
    if content == "equal":
        data[:] = 7
    runs = np.array_split(data if content != "reversed" else data[::-1], 11)
    out = sort_runs(runs, tmp_path / "out.npy", np.int64, memory_bytes=64_000)
    assert np.array_equal(np.load(out), data)
    assert list(find_repeats(out)) == ([7] if content == "equal" else [])


def test_nothing_and_empty_runs_give_an_empty_file(tmp_path: Path) -> None:
    for runs in ([], [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)] * 3):
        out = sort_runs(runs, tmp_path / "out.npy", np.uint64)
        assert np.load(out).shape == (0,) and np.load(out).dtype == np.uint64
        assert list(find_repeats(out)) == []


def test_another_type_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "run.npy"
    np.save(path, np.zeros(3, np.int32))
    with pytest.raises(ArtifactCorruptError, match=r"run\.npy: expected uint64, found int32"):
        sort_runs([path], tmp_path / "out.npy", np.uint64)
    with pytest.raises(TypeError, match="expected uint64 in one dimension, found int32"):
        sort_runs([np.zeros(3, np.int32)], tmp_path / "out.npy", np.uint64)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactCorruptError, match="expected 12 bytes of content, found 11"):
        sort_runs([path], tmp_path / "out.npy", np.int32)


@given(pieces=st.lists(st.lists(st.integers(-9, 9), max_size=20), max_size=5), block=st.integers(1, 30))
def test_npy_files_in_pieces_are_numpys(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[list[int]], block: int
) -> None:
    folder = tmp_path_factory.mktemp("npy")
    whole = np.array([value for piece in pieces for value in piece], dtype=np.int64)
    np.save(folder / "whole.npy", whole)
    with NpyWriter(folder / "pieces.npy", np.int64) as writer:
        for piece in pieces:
            writer.append(np.array(piece, dtype=np.int64))
    assert (folder / "pieces.npy").read_bytes() == (folder / "whole.npy").read_bytes()
    reader = NpyReader(folder / "pieces.npy", np.int64)
    assert len(reader) == len(whole)
    assert [v for b in reader.blocks(block) for v in b.tolist()] == whole.tolist()
    assert np.array_equal(reader.read(2, 2 + block), whole[2 : 2 + block])


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from data_prep.external_sort import find_repeats, sort_runs
folder = Path(sys.argv[1])
record = np.dtype([("rank", "<u8"), ("key", "<u8"), ("number", "<i8")])
def runs():
    for start in range(0, 1_500_000, 50_000):
        part = np.zeros(50_000, record)
        part["number"] = np.arange(start, start + 50_000)
        part["rank"] = part["number"].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        yield part
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sort_runs(runs(), folder / "out.npy", record, memory_bytes=8 << 20)
assert not list(find_repeats(folder / "out.npy", "rank", 1 << 16))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_bounded(tmp_path: Path) -> None:
    """36 MB of records with 8 MB of memory, measured in a process of its own."""
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 14_000, "KiB of growth"  # some of it is code of numpy touched for the first time
    order = np.load(tmp_path / "out.npy")
    assert len(order) == 1_500_000 and (order["rank"][1:] > order["rank"][:-1]).all()
