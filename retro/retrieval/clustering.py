"""k-means for the lists of an index, the same centroids for any number of threads.

faiss' own training multiplies matrices on all threads at once, and how a product is divided decides its last bits;
after some rounds the centroids differ. Here points are assigned by blocks of a fixed size, each on one thread, and sums
are added in the order of the blocks. The rounds are those of faiss (Clustering: seeded points as first centroids, a
fixed number of rounds, empty clusters split the largest).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from retro.retrieval.native import load_faiss, usable_threads

_BLOCK = 16384
# Points per centroid beyond which more bring nothing (faiss: max_points_per_centroid).
_POINTS = 256
# A cluster is split by moving its centroid by this share, up and down (faiss: EPS).
_SHIFT = 1 / 1024


def train_centroids(
    points: np.ndarray,
    count: int,
    *,
    inner_product: bool = False,
    spherical: bool = False,
    rounds: int = 10,
    seed: int = 0,
    on_gpu: bool = False,
) -> np.ndarray:
    """Centroids float32 [count, d] of points float32 [n, d]; n must be at least `count`.

    inner_product: points belong to the centroid of the largest product, else to the nearest. spherical: centroids are
    scaled to length 1 after every round. on_gpu: points are assigned on the GPU (the same up to rounding).
    """
    generator = np.random.Generator(np.random.Philox(seed))
    if len(points) > _POINTS * count:
        chosen = generator.choice(len(points), size=_POINTS * count, replace=False, shuffle=False)
        points = points[np.sort(chosen)]
    first = np.sort(generator.choice(len(points), size=count, replace=False, shuffle=False))
    centroids = points[first].astype(np.float32)
    for _ in range(rounds):
        if spherical:
            _normalise(centroids)
        sums, sizes = _assign(points, centroids, inner_product, on_gpu)
        filled = sizes > 0
        centroids[filled] = (sums[filled] / sizes[filled, None]).astype(np.float32)
        _fill_empty(centroids, sizes)
    if spherical:
        _normalise(centroids)
    return centroids


def _assign(
    points: np.ndarray, centroids: np.ndarray, inner_product: bool, on_gpu: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(sums float64 [count, d] of the points of each centroid, how many int64 [count])."""
    faiss = load_faiss()
    kind = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
    index = faiss.IndexFlat(centroids.shape[1], kind)
    index.add(centroids)
    if on_gpu:
        resources = faiss.StandardGpuResources()
        index = faiss.index_cpu_to_gpu(resources, 0, index)

    def block_sums(start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        block = np.ascontiguousarray(points[start : start + _BLOCK])
        owner = index.search(block, 1)[1][:, 0]
        order = np.argsort(owner, kind="stable")
        owners, first, counts = np.unique(owner[order], return_index=True, return_counts=True)
        return owners, np.add.reduceat(block[order], first, axis=0, dtype=np.float64), counts

    sums = np.zeros(centroids.shape, dtype=np.float64)
    sizes = np.zeros(len(centroids), dtype=np.int64)
    threads = 1 if on_gpu else usable_threads()
    with ThreadPoolExecutor(threads, "k-means", _one_thread) as pool:
        for owners, block, counts in pool.map(block_sums, range(0, len(points), _BLOCK)):
            sums[owners] += block
            sizes[owners] += counts
    return sums, sizes


def _one_thread() -> None:
    load_faiss().omp_set_num_threads(1)


def _fill_empty(centroids: np.ndarray, sizes: np.ndarray) -> None:
    """Every empty cluster takes half of the largest: two centroids a little apart, in directions that alternate."""
    signs: Any = np.where(np.arange(centroids.shape[1]) % 2 == 0, _SHIFT, -_SHIFT).astype(np.float32)
    for empty in np.flatnonzero(sizes == 0).tolist():
        largest = int(np.argmax(sizes))
        centroids[empty] = centroids[largest] * (1 + signs)
        centroids[largest] *= 1 - signs
        sizes[empty] = sizes[largest] // 2
        sizes[largest] -= sizes[empty]


def _normalise(centroids: np.ndarray) -> None:
    centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), np.float32(1e-12))
