"""Locality sensitive hashing of MinHash signatures by bands (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets,
section 3.4): documents that agree in all rows of one band are candidates for near duplicates."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

# Bands only propose, every candidate is compared: a pair missed counts nine times as much as one proposed in vain.
_MISSED, _IN_VAIN = 0.9, 0.1
# Near 1 there is nothing above the threshold to weigh, and one long band would miss what has a single other value.
_HIGHEST = 0.95
_STEPS = 1000
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@lru_cache(maxsize=64)
def choose_bands(threshold: float, permutations: int) -> tuple[int, int]:
    """(bands, rows per band) with bands x rows <= permutations.

    Of all layouts the one with the least 0.1 x (area of the probability to be proposed below the threshold) + 0.9 x
    (area of the probability to be missed above it), where similarity s is proposed with probability 1 - (1 - s^r)^b;
    of equal ones the one with fewer bands. The weighting of the areas is that of Zhu et al. 2016 (LSH Ensemble).
    """
    threshold = min(threshold, _HIGHEST)
    steps = (np.arange(_STEPS) + 0.5) / _STEPS  # the middles of equal intervals
    below, above = steps * threshold, threshold + steps * (1 - threshold)
    best: tuple[float, int, int] | None = None
    for bands in range(1, permutations + 1):
        for rows in range(1, permutations // bands + 1):
            in_vain = float((1 - (1 - below**rows) ** bands).mean()) * threshold
            missed = float(((1 - above**rows) ** bands).mean()) * (1 - threshold)
            # Rounded, so that the choice is the same whatever the last bits of a machine's power function.
            found = (round(_IN_VAIN * in_vain + _MISSED * missed, 9), bands, rows)
            best = found if best is None or found < best else best
    assert best is not None
    return best[1], best[2]


def band_hashes(signatures: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """uint64 [bands, n] hashes of the bands of signatures uint32 [n, p]: equal where all rows of the band are.

    Never 0, which is kept for documents that have no signature.
    """
    parts = signatures[:, : bands * rows].reshape(len(signatures), bands, rows).transpose(2, 1, 0).astype(np.uint64)
    mixed = np.full(parts.shape[1:], np.uint64(rows))
    for part in parts:
        mixed = (mixed ^ (mixed >> np.uint64(29))) * _MULTIPLIER + part
    mixed = (mixed ^ (mixed >> np.uint64(32))) * _MULTIPLIER
    return np.maximum(mixed ^ (mixed >> np.uint64(29)), np.uint64(1))
