"""Longest common run and r(C) against a slow search for substrings."""

import numpy as np
import pytest

from retro.retrieval.overlap import longest_common_runs, overlap_ratio


def _slow(a: list[int], b: list[int]) -> int:
    best = 0
    for i in range(len(a)):
        for j in range(i + 1, len(a) + 1):
            run = a[i:j]
            if any(b[s : s + len(run)] == run for s in range(len(b) - len(run) + 1)):
                best = max(best, len(run))
    return best


@pytest.mark.parametrize(("m", "r", "vocabulary"), [(8, 16, 3), (12, 5, 2), (1, 1, 2), (6, 12, 50)])
def test_matches_the_slow_search(m: int, r: int, vocabulary: int) -> None:
    generator = np.random.default_rng(m)
    chunks = generator.integers(0, vocabulary, (9, m))
    neighbors = generator.integers(0, vocabulary, (9, 3, r))
    chunk_mask = np.arange(m) < generator.integers(0, m + 1, (9, 1))
    neighbor_mask = np.arange(r) < generator.integers(0, r + 1, (9, 3, 1))
    found = longest_common_runs(chunks, neighbors, chunk_mask, neighbor_mask)
    ratio = overlap_ratio(chunks, neighbors, chunk_mask, neighbor_mask)
    for i in range(9):
        real = chunks[i][chunk_mask[i]].tolist()
        expected = [_slow(real, neighbors[i, k][neighbor_mask[i, k]].tolist()) for k in range(3)]
        assert found[i].tolist() == expected
        assert ratio[i] == (max(expected) / len(real) if real else 0.0)


def test_padding_matches_nothing_even_itself() -> None:
    chunks, neighbors = np.full((1, 4), 7), np.full((1, 2, 8), 7)
    nothing = longest_common_runs(chunks, neighbors, np.zeros((1, 4), bool), np.zeros((1, 2, 8), bool))
    assert nothing.tolist() == [[0, 0]]
    assert longest_common_runs(chunks, neighbors).tolist() == [[4, 4]]


def test_runs_longer_than_a_byte() -> None:
    chunks = np.arange(600)[None]
    assert longest_common_runs(chunks, np.arange(100, 700)[None, None]).tolist() == [[500]]


def test_leading_axes_must_agree() -> None:
    with pytest.raises(ValueError, match="leading axes"):
        longest_common_runs(np.zeros((2, 4), int), np.zeros((3, 1, 4), int))
