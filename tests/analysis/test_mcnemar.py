"""The exact test against binomials in whole numbers, and Holm's correction against a table worked by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro.analysis.mcnemar import exact_mcnemar, holm, p_text


def in_whole_numbers(first: int, second: int) -> Fraction:
    tosses = first + second
    tail = sum(math.comb(tosses, k) for k in range(min(first, second) + 1))
    return min(Fraction(1), Fraction(2 * tail, 2**tosses))


@given(st.integers(0, 120), st.integers(0, 120))
def test_it_is_the_binomial_test(first, second):
    assert exact_mcnemar(first, second) == pytest.approx(float(in_whole_numbers(first, second)), rel=1e-9)
    assert exact_mcnemar(first, second) == exact_mcnemar(second, first)


def test_cases_by_hand():
    assert exact_mcnemar(0, 0) == 1.0
    assert exact_mcnemar(1, 0) == 1.0
    assert exact_mcnemar(0, 5) == pytest.approx(2 / 32)
    assert exact_mcnemar(1, 6) == pytest.approx(2 * (1 + 7) / 128)
    assert exact_mcnemar(7, 7) == 1.0


def test_many_questions_stay_exact():
    assert exact_mcnemar(960, 1040) == pytest.approx(float(in_whole_numbers(960, 1040)), rel=1e-9)
    assert 0 < exact_mcnemar(100, 900) < 1e-150
    assert exact_mcnemar(0, 100_000) == 0.0
    with pytest.raises(ValueError, match="-1"):
        exact_mcnemar(-1, 3)


def test_it_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    for first, second in ((3, 14), (20, 31), (0, 9), (250, 300)):
        assert exact_mcnemar(first, second) == pytest.approx(stats.binomtest(first, first + second).pvalue, rel=1e-9)


def test_holm_by_hand():
    # sorted: .005 x 4, .01 x 3, .03 x 2 = .06, .04 x 1 raised to the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, None, 0.9]) == [1.0, None, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (None, "-"),
        (1.0, "1"),
        (0.9999, "1"),
        (0.0314, "0.031"),
        (0.00042, "0.0004"),
        (1e-9, "<0.0001"),
        (0.0, "<0.0001"),
    ],
)
def test_p_as_text(p, text):
    assert p_text(p) == text
