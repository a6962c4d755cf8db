"""Training of faiss indexes: the sample, the bytes for any threads, what is not printed, errors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from retro.config.errors import ConfigError
from retro.config.prep_index import VectorIndexConfig
from retro.retrieval.faiss_training import draw_rows, sample_size, training_sample
from retro.retrieval.vectors import VectorStore
from tests.retrieval.faiss_vectors import clustered

faiss = pytest.importorskip("faiss", reason="faiss is not installed")


def _train(config: VectorIndexConfig, store: VectorStore | None = None):
    from retro.retrieval.faiss_training import train_index

    return train_index(store or clustered(), "l2", config.factory, config)


def _bytes(index) -> bytes:
    return bytes(faiss.serialize_index(index))


def test_the_training_sample_is_seeded() -> None:
    found = []
    for seed in (0, 0, 1):
        trained = _train(VectorIndexConfig(factory="IVF8,Flat", train_sample=400, seed=seed))
        assert trained.vectors >= 398 and trained.notice == "" and trained.index.ntotal == 0
        found.append(_bytes(trained.index))
    assert found[0] == found[1] != found[2]


def test_the_sample_is_uniform_and_leaves_zero_vectors_out() -> None:
    store = clustered()
    everything = training_sample(store, 5000, 0)
    assert len(everything) == 1998 and (everything != 0).any(axis=1).all()
    for total, size in ((1000, 500), (100_000, 2000)):  # both ways of drawing
        counts = np.zeros(10)
        for seed in range(40):
            rows = draw_rows(np.random.Generator(np.random.Philox(seed)), total, size)
            assert len(np.unique(rows)) == size and (np.diff(rows) > 0).all() and rows[0] >= 0 and rows[-1] < total
            counts += np.histogram(rows, bins=10, range=(0, total))[0]
        expected = 40 * size / 10
        assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_the_size_of_the_sample_follows_the_lists() -> None:
    assert sample_size(0) == 65536 and sample_size(4096) == 64 * 4096 and sample_size(1 << 22) == 1 << 22


FACTORIES = ["IVF16,Flat", "IVF32_HNSW8,SQ8", "OPQ4_8,IVF16,PQ4", "IVF16,RaBitQ", "PQ4", "IVF16,RaBitQ,Refine(SQ8)"]


@pytest.mark.parametrize("factory", FACTORIES)
def test_the_same_bytes_for_any_number_of_threads(factory: str) -> None:
    found = []
    before = faiss.omp_get_max_threads()
    try:
        for threads in (1, 2, 3):
            faiss.omp_set_num_threads(threads)
            found.append(_bytes(_train(VectorIndexConfig(factory=factory), clustered(2000)).index))
    finally:
        faiss.omp_set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_a_graph_is_the_same_for_any_number_of_threads() -> None:
    from retro.retrieval.faiss_training import fill_index, make_index

    found = []
    before = faiss.omp_get_max_threads()
    try:
        for threads in (1, 3):
            faiss.omp_set_num_threads(threads)
            index = make_index(16, "HNSW8", "l2")
            rows = fill_index(index, clustered(), 0, 2000)
            assert faiss.omp_get_max_threads() == threads
            assert rows.tolist() == [i for i in range(2000) if i not in (5, 90)]
            found.append(_bytes(index))
    finally:
        faiss.omp_set_num_threads(before)
    assert found[0] == found[1]


def test_few_training_points_are_one_notice_and_nothing_on_stderr() -> None:
    """faiss writes from C++, so a process of its own shows what a user would see."""
    code = """
from retro.config.prep_index import VectorIndexConfig
from retro.retrieval.faiss_training import train_index
from tests.retrieval.faiss_vectors import clustered
for factory in ("IVF64,PQ4", "OPQ4_8,IVF64_HNSW8,PQ4", "PQ4", "IVF64,RaBitQ,Refine(PQ8)"):
    trained = train_index(clustered(1000), "l2", factory, VectorIndexConfig(factory=factory))
    print(trained.notice)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    notice = "998 training vectors for 64 lists are fewer than 39 for each: fewer lists would be found better"
    assert done.stderr == "" and done.stdout.splitlines() == [notice, notice, "", notice]


def test_no_polysemous_codes() -> None:
    """`PQ4` is trained as `PQ4np`."""
    plain, other = (_train(VectorIndexConfig(factory=f)).index for f in ("IVF16,PQ4np", "IVF16,PQ4"))
    assert _bytes(plain) == _bytes(other)
    assert not _train(VectorIndexConfig(factory="PQ4")).index.do_polysemous_training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factory": "IVF4096,Flat"}, "4096 centroids need at least as many training vectors"),
        ({"factory": "IVF64,Flat", "train_sample": 40}, "found 40"),
        ({"factory": "PQ4x10np"}, "cannot be trained on 500 vectors"),
        ({"factory": "NoSuchIndex"}, "not a faiss factory string"),
    ],
)
def test_bad_options_are_one_clear_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        _train(VectorIndexConfig(**options), clustered(502))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
