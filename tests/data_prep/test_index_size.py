"""Sizes of indexes from their factory strings, against the files that faiss writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_prep.index_size import index_size
from retro.config.errors import ConfigError

ROWS, DIMENSION = 2000, 32
FACTORIES = [
    "Flat", "SQ4", "SQ6", "SQ8", "SQfp16", "SQbf16", "PQ8x4", "PQ8x4fs", "PQ4np", "RaBitQ", "HNSW16", "HNSW32,Flat",
    "HNSW16_SQ8", "HNSW16_PQ4x4", "NSG16", "IVF16,Flat", "IVF16,SQ8", "IVF16,PQ8x4", "IVF16_HNSW16,PQ8x4",
    "IVF16_HNSW32,SQ8", "IVF16_HNSW32,RaBitQ", "OPQ8_16,IVF16_HNSW32,PQ8x4", "PCA16,SQ8", "PCAR16,IVF16,Flat",
    "RR16,Flat", "L2norm,Flat", "SQ8,RFlat", "IVF16,PQ8x4,RFlat", "IVF16,PQ8x4,Refine(SQfp16)",
]  # fmt: skip


@pytest.mark.parametrize("factory", FACTORIES)
def test_it_is_the_size_of_the_file(factory: str, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    from retro.retrieval.native import load_faiss

    faiss = load_faiss()
    faiss.omp_set_num_threads(1)
    vectors = np.random.default_rng(0).normal(size=(ROWS, DIMENSION)).astype(np.float32)
    index = faiss.index_factory(DIMENSION, factory)
    index.train(vectors[:600])  # the rotation of OPQ takes its time
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "index"))
    assert index_size(factory, DIMENSION).on_disk(ROWS) == pytest.approx((tmp_path / "index").stat().st_size, rel=0.03)


def test_the_papers_index() -> None:
    size = index_size("OPQ64_128,IVF4194304_HNSW32,PQ64", 1024)
    assert (size.code, size.ids, size.links, size.per_vector, size.lists, size.width) == (64, 8, 0, 72, 1 << 22, 128)
    assert size.plain_lists
    # Centroids, the links over them, rotation and codebooks; the table of distances would be too large to be kept.
    centroid = 4 * 128 + 4 * (64 + 32 / 31) + 12
    assert size.fixed == pytest.approx((1 << 22) * centroid + 4 * 1024 * 128 + 4 * 128 * 256)
    assert size.table == 0
    assert index_size("IVF1024,PQ16", 64).table == 4 * 1024 * 16 * 256


def test_exact_search_has_no_index() -> None:
    assert index_size("exact", 300).in_memory(10**9) == 0


def test_what_shards_cannot_fill() -> None:
    assert index_size("IVF16,SQ8", 32).plain_lists
    for factory in ("HNSW32", "Flat", "IVF16,PQ8x4fs", "IVF16,PQ8x4,RFlat"):
        assert not index_size(factory, 32).plain_lists, factory


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("", "size of '' is not known"),
        ("IVF16", "size of 'IVF16' is not known"),
        ("IVF16_Quux3,Flat", "size of 'Quux3' is not known"),
        ("IMI2x8,PQ8", "size of 'IMI2x8' is not known"),
        ("IVF16,PQ7", "7 codes do not divide 32 dimensions"),
        ("HNSW32,Quux", "size of 'Quux' is not known"),
    ],
)
def test_what_is_not_known_is_one_line(factory: str, message: str) -> None:
    with pytest.raises(ConfigError, match="factory") as error:
        index_size(factory, 32)
    assert message in str(error.value) and "\n" not in str(error.value)
