"""Batches of similar length: the same samples, in an order of the seed alone."""

from __future__ import annotations

import itertools

import numpy as np

from retro.data.length_order import LengthSortedStream
from retro.data.order import SampleStream

LENGTHS = np.random.default_rng(0).integers(1, 100, 37).astype(float)


def stream(seed: int = 3) -> LengthSortedStream:
    return LengthSortedStream(SampleStream(37, seed), LENGTHS, batch=4, window=5, seed=seed)


def test_windows_hold_the_same_samples_in_batches_of_similar_length():
    plain, ordered = SampleStream(37, 3).take(0, 200), stream().take(0, 200)
    spread = []
    for start in range(0, 200, 20):
        window = ordered[start : start + 20]
        assert sorted(window) == sorted(plain[start : start + 20])
        batches = LENGTHS[window].reshape(5, 4)
        spread.append((batches.max(1) - batches.min(1)).mean())
        borders = sorted((batch.min(), batch.max()) for batch in batches)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(borders))
    assert np.mean(spread) < 30
    # Short ones do not always come first.
    firsts = [LENGTHS[ordered[start : start + 4]].mean() for start in range(0, 200, 20)]
    assert max(firsts) - min(firsts) > 30


def test_any_part_can_be_taken():
    whole = stream().take(0, 120)
    other = stream()
    for start, stop in ((90, 101), (3, 44), (0, 1), (60, 60), (119, 120)):
        assert other.take(start, stop).tolist() == whole[start:stop].tolist()
    assert stream(4).take(0, 120).tolist() != whole.tolist()
