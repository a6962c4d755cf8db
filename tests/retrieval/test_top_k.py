"""Top-k selection against sorting."""

import numpy as np
import pytest

from retro.retrieval.top_k import candidates_within, top_k


@pytest.mark.parametrize("n", [1, 7, 100, 5000, 40000])
@pytest.mark.parametrize("k", [1, 3, 50])
@pytest.mark.parametrize("levels", [2, 5, 10**9])
def test_top_k_is_a_stable_sort(n: int, k: int, levels: int) -> None:
    generator = np.random.default_rng(n + k)
    scores = np.maximum(generator.integers(-levels, levels, size=n), 0).astype(np.float32)  # half zeros, many ties
    order = np.lexsort((np.arange(n), -scores))
    assert top_k(scores, k).tolist() == [i for i in order if scores[i] > 0][:k]


@pytest.mark.parametrize("n", [5, 1000, 30000])
def test_candidates_within_is_complete_and_tight(n: int) -> None:
    scores = np.random.default_rng(n).normal(size=n).astype(np.float32)
    scores[::7] = -np.inf
    for k, slack in ((1, 0.0), (4, 0.25), (n, 0.1)):
        finite = np.sort(scores[np.isfinite(scores)])[::-1]
        bound = finite[min(k, len(finite)) - 1] - slack if k <= len(finite) else -np.inf
        assert candidates_within(scores, k, slack).tolist() == [i for i in range(n) if scores[i] >= max(bound, -1e30)]
