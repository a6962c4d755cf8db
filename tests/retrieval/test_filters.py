"""Exclusion of documents by group, and compaction."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.retrieval.filters import Exclusions, compact

_KEYS = st.integers(0, 5).map(lambda i: (i * 0x9E3779B97F4A7C15) % 2**64)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_candidate_is_excluded_exactly_when_its_group_lists_its_document(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    keys = np.array([[data.draw(_KEYS) for _ in range(columns)] for _ in range(rows)], dtype=np.uint64)
    group_of_row = np.array([data.draw(st.integers(0, 3)) for _ in range(rows)])
    pairs = data.draw(st.lists(st.tuples(st.integers(0, 3), _KEYS), max_size=8))
    exclusions = Exclusions(
        group_of_row, np.array([g for g, _ in pairs], np.int64), np.array([k for _, k in pairs], np.uint64)
    )
    mask = exclusions.mask(keys)
    for i in range(rows):
        for j in range(columns):
            assert mask[i, j] == ((int(group_of_row[i]), int(keys[i, j])) in set(pairs))


def test_keys_of_all_64_bits_are_told_apart() -> None:
    keys = np.array([[2**64 - 1, 2**64 - 2, 2**63]], dtype=np.uint64)
    assert Exclusions.same_for_all(1, keys[0, 1:2]).mask(keys).tolist() == [[False, True, False]]


def test_take_and_none() -> None:
    exclusions = Exclusions(np.array([0, 1]), np.array([1]), np.array([9], np.uint64))
    keys = np.full((1, 1), 9, np.uint64)
    assert not exclusions.take(np.array([0])).mask(keys).any()
    assert exclusions.take(np.array([1])).mask(keys).all()
    assert not Exclusions.none(1).mask(keys).any()


def test_compact_keeps_the_order_and_pads() -> None:
    ids = np.array([[5, 6, 7, 8], [1, 2, 3, 4]])
    distances = np.array([[0.5, 0.6, 0.7, 0.8], [0.1, 0.2, 0.3, 0.4]], np.float32)
    keep = np.array([[False, True, False, True], [False] * 4])
    out, far = compact(ids, distances, keep)
    assert out.tolist() == [[6, 8, -1, -1], [-1] * 4]
    assert far[0, :2].tolist() == distances[0, [1, 3]].tolist() and np.isinf(far[0, 2:]).all()
    assert compact(ids, distances, keep, 1)[0].tolist() == [[6], [-1]]
    assert compact(ids, distances, keep, 6)[0].shape == (2, 6)
