"""Batches of similar length, and reading ahead."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.retrieval.length_batches import batch_rows, length_batches, token_rows
from retro.retrieval.read_ahead import read_ahead


@settings(deadline=None, max_examples=200)
@given(lengths=st.lists(st.integers(1, 40), max_size=60), batch_tokens=st.integers(1, 200))
def test_every_row_is_in_one_batch_of_the_allowed_size(lengths: list[int], batch_tokens: int) -> None:
    groups = batch_rows(np.array(lengths, dtype=np.int64), batch_tokens)
    assert sorted(int(i) for group in groups for i in group) == list(range(len(lengths)))
    sizes = [len(group) * max(lengths[i] for i in group) for group in groups]
    assert all(size <= batch_tokens or len(group) == 1 for size, group in zip(sizes, groups, strict=True))
    longest = [max(lengths[i] for i in group) for group in groups]
    shortest = [min(lengths[i] for i in group) for group in groups]
    assert all(a <= b for a, b in zip(longest[:-1], shortest[1:], strict=True))
    for group, size, following in zip(groups[:-1], sizes[:-1], shortest[1:], strict=True):
        assert (len(group) + 1) * following > batch_tokens or size > batch_tokens  # no batch ends without need


def test_padding_is_small_and_contents_are_kept() -> None:
    generator = np.random.default_rng(0)
    ids = [generator.integers(5, 90, size=n).tolist() for n in generator.integers(2, 120, size=2000)]
    special = [[1, *[0] * (len(row) - 2), 1] for row in ids]
    total = padded = 0
    for batch in length_batches(token_rows(ids, special), 2048, pad_id=3):
        for row, padded_ids, present, marks in zip(batch.rows, batch.ids, batch.present, batch.special, strict=True):
            expected = ids[row]
            assert padded_ids[present].tolist() == expected and present[: len(expected)].all()
            assert (padded_ids[~present] == 3).all() and not marks[~present].any()
            assert np.flatnonzero(marks).tolist() == sorted({0, len(expected) - 1})
        total += batch.present.size
        padded += int((~batch.present).sum())
    assert padded / total < 0.03 < 0.4 < 1 - np.mean([len(row) for row in ids]) / 119
    assert list(length_batches(token_rows([], []), 10, 0)) == []


def test_items_come_in_order_and_ahead_of_need() -> None:
    made = []

    def items():
        for i in range(6):
            made.append(i)
            yield i

    found = []
    for item in read_ahead(items()):
        limit = time.monotonic() + 20
        while len(made) < min(item + 2, 6) and time.monotonic() < limit:
            time.sleep(0.001)
        assert len(made) >= min(item + 2, 6)
        found.append(item)
    assert found == list(range(6))


def test_errors_of_the_source_reach_the_consumer() -> None:
    def items():
        yield 1
        raise ValueError("broken")

    found = []
    with pytest.raises(ValueError, match="broken"):
        for item in read_ahead(items()):
            found.append(item)
    assert found == [1]


def test_a_consumer_that_stops_ends_the_thread() -> None:
    made, before = [], set(threading.enumerate())

    def items():
        for i in range(10**9):
            made.append(i)
            yield i

    consumer = read_ahead(items(), depth=2)
    assert next(consumer) == 0
    consumer.close()
    assert set(threading.enumerate()) <= before and len(made) <= 5
