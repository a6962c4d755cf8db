"""What `factory: auto` chooses, and that faiss can make it."""

from __future__ import annotations

import pytest

from retro.retrieval.index_choice import EXACT_VECTORS, choose_factory, list_count


def test_lists_are_the_power_of_two_nearest_to_four_roots() -> None:
    assert list_count(200_000) == 2048 and list_count(1_000_000) == 4096 and list_count(66_000_000) == 32768
    assert list_count(19_000_000_000) == 2**19 and list_count(10**13) == 2**22 and list_count(0) == 16


@pytest.mark.parametrize(
    ("vectors", "dimension", "budget", "factory"),
    [
        (EXACT_VECTORS, 384, None, "exact"),
        (EXACT_VECTORS + 1, 384, None, "IVF2048_HNSW32,SQ8"),
        (10_000_000, 384, None, "IVF16384_HNSW32,SQ8"),
        (100_000_000, 384, None, "IVF32768_HNSW32,RaBitQ"),
        (100_000_000, 384, 60.0, "IVF32768_HNSW32,SQ8"),
        (100_000_000, 384, 6.0, "OPQ48_96,IVF32768_HNSW32,PQ48"),
        (19_000_000_000, 1024, 1400.0, "OPQ64_128,IVF524288_HNSW32,PQ64"),
        (19_000_000_000, 1024, None, "OPQ64_128,IVF524288_HNSW32,PQ64"),
    ],
)
def test_the_choice(vectors: int, dimension: int, budget: float | None, factory: str) -> None:
    choice = choose_factory(vectors, dimension, budget)
    assert choice.factory == factory
    assert f"{vectors:,} vectors" in choice.reason and "\n" not in choice.reason
    if factory != "exact":
        fits = choice.bytes <= (8.0 if budget is None else budget) * 1e9
        assert ("more than the budget" in choice.reason) is not fits


@pytest.mark.parametrize("dimension", [8, 32, 50, 64, 100, 384, 768, 1024])
@pytest.mark.parametrize("budget", [1000.0, 3.0, 0.001])
def test_faiss_makes_whatever_is_chosen(dimension: int, budget: float) -> None:
    pytest.importorskip("faiss", reason="faiss is not installed")
    from retro.retrieval.faiss_training import inverted_lists, make_index

    choice = choose_factory(20_000_000, dimension, budget)
    index = make_index(dimension, choice.factory, "l2")
    lists = inverted_lists(index)
    assert lists.nlist == list_count(20_000_000)
    estimated = 20_000_000 * (lists.code_size + 8)
    assert choice.bytes == pytest.approx(estimated + lists.nlist * (4 * dimension + 256), rel=0.15)
