"""The bootstrap against a slow loop, against a known distribution, and at its edges."""

from __future__ import annotations

import numpy as np
import pytest

from retro.analysis import bootstrap
from retro.analysis.bootstrap import (
    DocumentSums,
    percentile_interval,
    ratio,
    ratio_difference,
    relative_change,
    resampled_sums,
    share_lost,
)


def slow_sums(sums_DC: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """One document at a time, with the same generator."""
    generator = np.random.Generator(np.random.Philox(seed))
    documents, columns = sums_DC.shape
    result = np.zeros((draws, columns))
    for draw in range(draws):
        for _ in range(documents):
            result[draw] += sums_DC[generator.integers(0, documents, dtype=np.int64)]
    return result


def test_equals_a_slow_loop():
    table = np.random.default_rng(0).normal(size=(17, 3))
    np.testing.assert_allclose(resampled_sums(table, 50, 3), slow_sums(table, 50, 3), rtol=1e-12, atol=1e-12)


def test_batches_do_not_change_the_draws(monkeypatch):
    table = np.random.default_rng(0).normal(size=(23, 2))
    whole = resampled_sums(table, 40, 1)
    monkeypatch.setattr(bootstrap, "_BATCH_VALUES", 23 * 7)
    np.testing.assert_allclose(resampled_sums(table, 40, 1), whole, rtol=1e-12)


def test_seed_decides():
    table = np.random.default_rng(0).normal(size=(9, 1))
    assert np.array_equal(resampled_sums(table, 30, 5), resampled_sums(table, 30, 5))
    assert not np.array_equal(resampled_sums(table, 30, 5), resampled_sums(table, 30, 6))


def test_spread_is_the_known_one_of_a_sum():
    values = np.random.default_rng(1).normal(size=(200, 1))
    draws = resampled_sums(values, 20_000, 0)[:, 0]
    assert draws.mean() == pytest.approx(values.sum(), abs=0.5)
    assert draws.std() == pytest.approx(np.sqrt(200) * values.std(), rel=0.03)


def test_interval_covers_the_true_ratio_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for trial in range(200):
        size = rng.integers(50, 400, 60)
        bits_a = size * (2.2 + rng.normal(0, 0.3, 60))
        bits_b = bits_a - size * (0.1 + rng.normal(0, 0.08, 60))  # true gain: 0.1 bits per byte
        sums = DocumentSums(np.arange(60), draws=300, seed=trial)
        for name, values in (("a", bits_a), ("b", bits_b), ("size", size)):
            sums.add(name, values)
        estimate = sums.estimate(ratio_difference, "a", "b", "size")
        hits += estimate.low <= 0.1 <= estimate.high
    assert 176 <= hits <= 199  # 95% of 200 is 190


def test_differences_are_paired():
    """A constant gain has no spread although the level of the documents differs widely."""
    rng = np.random.default_rng(3)
    size = rng.integers(50, 400, 40).astype(float)
    bits = size * rng.uniform(1, 5, 40)
    sums = DocumentSums(np.arange(40))
    sums.add("gpt", bits)
    sums.add("retro", bits - 0.25 * size)
    sums.add("size", size)
    level = sums.estimate(ratio, "gpt", "size")
    gain = sums.estimate(ratio_difference, "gpt", "retro", "size")
    assert gain.high - gain.low < 1e-9 < 0.3 < level.high - level.low
    assert gain.value == pytest.approx(0.25)


def test_whole_documents_are_drawn_not_chunks():
    """Copies of a chunk inside a document must not narrow the interval."""
    rng = np.random.default_rng(4)
    values = rng.normal(1, 0.5, 30)

    def width(copies: int) -> float:
        sums = DocumentSums(np.repeat(np.arange(30), copies))
        sums.add("value", np.repeat(values, copies))
        sums.add("count", np.ones(30 * copies))
        estimate = sums.estimate(ratio, "value", "count")
        return estimate.high - estimate.low

    assert width(20) == pytest.approx(width(1))


def test_statistics_by_hand():
    assert ratio_difference(np.array([12.0]), np.array([10.0]), np.array([4.0]))[0] == 0.5
    assert relative_change(np.array([12.0]), np.array([9.0]))[0] == -0.25
    assert share_lost(np.array([12.0]), np.array([10.0]), np.array([11.5]))[0] == 0.75


def test_few_documents_give_a_value_without_interval():
    sums = DocumentSums(np.array([0, 1, 2, 3]))
    sums.add("bits", np.ones(4))
    sums.add("bytes", np.full(4, 2.0))
    estimate = sums.estimate(ratio, "bits", "bytes")
    assert (estimate.value, estimate.low, estimate.has_interval, estimate.excludes_zero) == (0.5, None, False, False)


def test_nothing_gives_no_value():
    sums = DocumentSums(np.arange(8))
    sums.add("bits", np.zeros(8))
    sums.add("bytes", np.zeros(8))
    assert sums.estimate(ratio, "bits", "bytes").value is None


def test_interval_of_mostly_undefined_draws_is_none():
    assert percentile_interval(np.array([1.0, np.nan, np.nan, np.nan])) is None
    assert percentile_interval(np.array([1.0, 1.0, 1.0, np.nan])) == (1.0, 1.0)


def test_adding_after_an_estimate_is_an_error():
    sums = DocumentSums(np.arange(8))
    sums.add("a", np.ones(8))
    sums.estimate(ratio, "a", "a")
    with pytest.raises(RuntimeError):
        sums.add("b", np.ones(8))
