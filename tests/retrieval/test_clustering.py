"""k-means: what it minimises, empty clusters, and the same bits for any number of threads."""

from __future__ import annotations

import numpy as np
import pytest

from retro.retrieval import clustering, native
from retro.retrieval.clustering import train_centroids

faiss = pytest.importorskip("faiss", reason="faiss is not installed")


def _points(n: int = 5000, d: int = 24) -> np.ndarray:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(40, d)) * 3
    return (centres[generator.integers(0, 40, n)] + generator.normal(size=(n, d))).astype(np.float32)


def _error(points: np.ndarray, centroids: np.ndarray) -> float:
    return float(((points[:, None] - centroids[None]) ** 2).sum(axis=2).min(axis=1).mean())


def test_as_good_as_faiss() -> None:
    points = _points()
    theirs, ours = [], []
    for seed in range(8):  # one draw of first centroids is better than another
        reference = faiss.Kmeans(24, 64, niter=10, seed=seed)
        reference.train(points)
        theirs.append(_error(points, reference.centroids))
        ours.append(_error(points, train_centroids(points, 64, seed=seed)))
    assert np.mean(ours) < 1.05 * np.mean(theirs)
    assert np.mean(ours) < 0.8 * _error(points, train_centroids(points, 64, rounds=0))


def test_a_round_by_hand() -> None:
    points = np.array([[0, 0], [0, 2], [10, 0], [10, 2], [10, 4]], np.float32)
    for seed in range(5):
        found = train_centroids(points, 2, seed=seed, rounds=10)
        assert sorted(map(tuple, found.tolist())) == [(0.0, 1.0), (10.0, 2.0)]


@pytest.mark.parametrize("options", [{}, {"inner_product": True, "spherical": True}])
def test_the_same_bits_for_any_number_of_threads(options: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "_BLOCK", 700)
    found = []
    for threads in ("1", "4"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        assert native.usable_threads() == int(threads)
        found.append(train_centroids(_points(), 64, seed=3, **options).tobytes())
    assert found[0] == found[1] != train_centroids(_points(), 64, seed=4, **options).tobytes()


def test_empty_clusters_split_the_largest() -> None:
    points = np.concatenate([np.zeros((50, 4)), np.ones((50, 4)) * [5, 6, 7, 8]]).astype(np.float32)
    points += np.random.default_rng(0).normal(size=points.shape).astype(np.float32) * 0.01
    found = train_centroids(np.concatenate([points[:1]] * 30 + [points]), 30)
    assert np.isfinite(found).all() and len(np.unique(found, axis=0)) > 15


def test_spherical_centroids_have_length_one() -> None:
    found = train_centroids(_points(), 16, inner_product=True, spherical=True)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert not np.allclose(np.linalg.norm(train_centroids(_points(), 16), axis=1), 1, rtol=0.1)
