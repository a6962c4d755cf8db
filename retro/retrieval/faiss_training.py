"""Training of faiss indexes: the same bytes for any number of threads, on the CPU; centroids on the GPU where asked.

What faiss would do by itself and is not done: polysemous codes of PQ (30 times the training time, read by no search
here), warnings on stderr for every codebook (one notice instead), and anything on several threads whose last bits
depend on their number: centroids have a loop of their own (clustering.py), rotations and codebooks, which learn from
few vectors, are trained on one thread.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from retro.config.errors import ConfigError
from retro.config.prep_index import ENCODE_BLOCK, VectorIndexConfig
from retro.retrieval.clustering import train_centroids
from retro.retrieval.embedder import Metric
from retro.retrieval.native import load_faiss
from retro.retrieval.vectors import VectorStore

# faiss' own recommendation of training points per centroid.
_POINTS = 39
# A rotation (OPQ) trains codebooks in every round. faiss' 65,536 vectors and 50 rounds take ten times as long; with
# these OPQ48_96,...,PQ48 reached recall@10 0.976 on 213,527 chunks (benchmarks/records/index_recall.json). The longer
# training was not compared.
_ROTATION_POINTS, _ROTATION_ROUNDS = 16384, 20
_MIN_SAMPLE, _MAX_SAMPLE, _PER_LIST = 65536, 4_000_000, 64


@dataclasses.dataclass(frozen=True)
class Training:
    """index: trained and empty; vectors: how many it was trained on; notice: one line where they were few, else ""."""

    index: Any
    vectors: int
    notice: str


def make_index(dimension: int, factory: str, metric: Metric) -> Any:
    """An empty index of a faiss factory string. Raises ConfigError for one that faiss does not know."""
    faiss = load_faiss()
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    try:
        return faiss.index_factory(dimension, factory, kind)
    except RuntimeError as error:
        raise ConfigError(
            f"factory {factory!r}: not a faiss factory string for vectors of {dimension} dimensions "
            f"({faiss_reason(error)})"
        ) from None


def train_index(
    vectors: VectorStore, metric: Metric, factory: str, config: VectorIndexConfig, on_gpu: bool = False
) -> Training:
    """Train an index on a seeded uniform sample. Raises ConfigError where the factory does not suit the vectors.

    on_gpu: the centroids of the lists are found on the GPU (the same up to rounding).
    """
    faiss = load_faiss()
    index = make_index(vectors.dimension, factory, metric)
    if index.is_trained:
        return Training(index, 0, "")
    lists = inverted_lists(index)
    wanted = config.train_sample or sample_size(lists.nlist if lists is not None else 0)
    sample = training_sample(vectors, wanted, config.seed)
    if lists is not None and len(sample) < lists.nlist:
        raise ConfigError(
            f"factory {factory!r}: {lists.nlist} centroids need at least as many training vectors (better "
            f"{_POINTS * lists.nlist}), found {len(sample)}; use fewer lists, or factory: exact"
        )
    notice = ""
    if lists is not None and len(sample) < _POINTS * lists.nlist:
        notice = (
            f"{len(sample):,} training vectors for {lists.nlist:,} lists are fewer than {_POINTS} for each: "
            "fewer lists would be found better"
        )
    try:
        with one_thread():  # but for the assignment of points to lists, which has threads of its own
            _train(faiss, index, sample, on_gpu)
    except RuntimeError as error:
        raise ConfigError(
            f"factory {factory!r}: cannot be trained on {len(sample)} vectors ({faiss_reason(error)}); "
            "choose a smaller factory, or raise train_sample if there are more vectors"
        ) from None
    return Training(index, len(sample), notice)


def sample_size(lists: int) -> int:
    """Training vectors for so many inverted lists, where the configuration does not say."""
    return max(lists, min(_MAX_SAMPLE, max(_MIN_SAMPLE, _PER_LIST * lists)))


def training_sample(vectors: VectorStore, size: int, seed: int) -> np.ndarray:
    """float32 [<= size, d]: vectors that are not zero, uniform without replacement, in the order of their ids.

    Not the first rows, which share topics. Only the sample is read; the memory is that of the sample.
    """
    total = len(vectors)
    if total <= size:
        rows = np.arange(total)
    else:
        generator = np.random.Generator(np.random.Philox(seed))
        rows = draw_rows(generator, total, size)
    out = np.empty((len(rows), vectors.dimension), dtype=np.float32)
    kept = 0
    for start in range(0, len(rows), 65536):
        block = vectors.gather(rows[start : start + 65536])
        block = block[(block != 0).any(axis=1)]
        out[kept : kept + len(block)] = block
        kept += len(block)
    return out[:kept]


def draw_rows(generator: np.random.Generator, total: int, size: int) -> np.ndarray:
    """`size` of the numbers 0 to total - 1, uniform without replacement, ascending; memory of the order of `size`."""
    if total <= 8 * size:
        return np.sort(generator.choice(total, size=size, replace=False, shuffle=False))
    rows = np.zeros(0, dtype=np.int64)
    while len(rows) < size:
        rows = np.unique(np.concatenate([rows, generator.integers(0, total, size + size // 8)]))
    return np.sort(generator.choice(rows, size=size, replace=False, shuffle=False))


def inverted_lists(index: Any) -> Any:
    """The IVF part of an index, None where it has none."""
    faiss = load_faiss()
    try:
        return faiss.extract_index_ivf(index)
    except RuntimeError:
        return None


def faiss_reason(error: RuntimeError) -> str:
    """The last sentence of faiss' message, without its C++ location."""
    text = str(error).strip().splitlines()[-1]
    return text.rsplit("Error: ", 1)[-1].removeprefix("'").rstrip("'")


def fill_index(index: Any, vectors: VectorStore, start: int, stop: int) -> np.ndarray:
    """Add rows [start, stop) but for zero vectors; returns the row of each position int64.

    By blocks that depend on the row numbers alone. A graph grows on one thread, so that it is the same everywhere.
    """
    rows = [np.zeros(0, np.int64)]
    faiss = load_faiss()
    with _Threads(1 if is_graph(faiss.downcast_index(index)) else faiss.omp_get_max_threads()):
        for first, block in vectors.aligned_blocks(start, stop, ENCODE_BLOCK):
            present = np.flatnonzero((block != 0).any(axis=1))
            if len(present):
                index.add(block[present])
            rows.append(first + present)
    return np.concatenate(rows)


def is_graph(index: Any) -> bool:
    """Whether filling the index builds a graph, point by point."""
    return any(name in type(index).__name__ for name in ("HNSW", "NSG", "NNDescent"))


def one_thread() -> Any:
    """Context in which the faiss calls of this thread run on one thread."""
    return _Threads(1)


class _Threads:
    def __init__(self, count: int) -> None:
        self._count = count

    def __enter__(self) -> None:
        faiss = load_faiss()
        self._before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(self._count)

    def __exit__(self, *_: Any) -> None:
        load_faiss().omp_set_num_threads(self._before)


def _train(faiss: Any, index: Any, sample: np.ndarray, on_gpu: bool) -> None:
    """Train every part in the order in which the vectors pass through them."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        for number in range(index.chain.size()):
            transform = faiss.downcast_VectorTransform(index.chain.at(number))
            if not transform.is_trained:
                _train_transform(faiss, transform, sample)
            sample = transform.apply(sample)
        _train(faiss, index.index, sample, on_gpu)
        index.is_trained = True
        return
    if isinstance(index, faiss.IndexRefine):
        _train(faiss, index.base_index, sample, on_gpu)
        if not index.refine_index.is_trained:
            _train(faiss, index.refine_index, sample, on_gpu)
        index.is_trained = True
        return
    if hasattr(index, "storage") and not index.storage.is_trained:  # a graph over codes
        _train(faiss, index.storage, sample, on_gpu)
    _quiet_codebooks(index)
    if isinstance(index, faiss.IndexIVF):
        _train_lists(faiss, index, sample, on_gpu)
    index.train(sample)


def _train_transform(faiss: Any, transform: Any, sample: np.ndarray) -> None:
    if isinstance(transform, faiss.OPQMatrix):
        sample = sample[:: -(-len(sample) // _ROTATION_POINTS)] if len(sample) else sample
        transform.niter = _ROTATION_ROUNDS
        codebook = faiss.ProductQuantizer(transform.d_out, transform.M, 8)
        _quiet(codebook.cp)
        transform.pq = codebook
        try:
            transform.train(sample)
        finally:
            transform.pq = None
        return
    transform.train(sample)


def _train_lists(faiss: Any, ivf: Any, sample: np.ndarray, on_gpu: bool) -> None:
    """Centroids of the lists; a quantizer of another make (IMI, residual) is left to faiss."""
    _quiet(ivf.cp)
    quantizer = faiss.downcast_index(ivf.quantizer)
    if not isinstance(quantizer, faiss.IndexFlat | faiss.IndexHNSWFlat):
        return
    centroids = train_centroids(
        sample,
        ivf.nlist,
        inner_product=ivf.metric_type == faiss.METRIC_INNER_PRODUCT,
        spherical=ivf.cp.spherical,
        rounds=ivf.cp.niter,
        seed=ivf.cp.seed,
        on_gpu=on_gpu,
    )
    quantizer.reset()
    quantizer.add(centroids)


def _quiet(parameters: Any) -> None:
    parameters.min_points_per_centroid = 1


def _quiet_codebooks(index: Any) -> None:
    for name in ("pq", "cp"):
        part = getattr(index, name, None)
        parameters = getattr(part, "cp", part)
        if hasattr(parameters, "min_points_per_centroid"):
            _quiet(parameters)
    if hasattr(index, "do_polysemous_training"):
        index.do_polysemous_training = False
