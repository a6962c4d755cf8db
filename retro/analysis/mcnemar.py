"""McNemar's exact test for two systems that answered the same questions, and Holm's correction for many of them.

McNemar 1947, "Note on the sampling error of the difference between correlated proportions"; Holm 1979, "A simple
sequentially rejective multiple test procedure". No scipy: what is summed are a few thousand terms at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def exact_mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of the hypothesis that both systems are right equally often.

    Only questions that exactly one of them got right count: `only_first` and `only_second` of them. Under the
    hypothesis each is a fair coin's toss, so p = min(1, 2 P(X <= min(only_first, only_second))) with X binomial
    (only_first + only_second, 1/2). 1 where they never differ. Raises ValueError for a negative count.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"expected counts of questions, found {only_first} and {only_second}")
    tosses, fewer = only_first + only_second, min(only_first, only_second)
    if 2 * fewer >= tosses - 1:  # the lower half of the distribution, or more
        return 1.0
    largest = math.lgamma(tosses + 1) - math.lgamma(fewer + 1) - math.lgamma(tosses - fewer + 1)
    total, term = 0.0, 1.0
    # P(X = k - 1) / P(X = k) = k / (tosses - k + 1): the terms fall off, so few of them matter.
    for k in range(fewer, -1, -1):
        total += term
        if term < 1e-18 * total:
            break
        term *= k / (tosses - k + 1)
    return min(1.0, 2 * total * math.exp(largest - tosses * math.log(2)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Each p adjusted for the number of tests: below a level all at once with at most that chance of any false
    alarm. None stays None and counts for nothing."""
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for place, (p, i) in enumerate(order):
        running = max(running, min(1.0, p * (len(order) - place)))
        adjusted[i] = running
    return adjusted


def p_text(p: float | None) -> str:
    """'0.031', '<0.0001', '1'; '-' for None."""
    if p is None:
        return "-"
    if p < 0.0001:
        return "<0.0001"
    return f"{p:.4f}" if p < 0.001 else f"{p:.3f}".removesuffix(".000")
