"""Warm-up and cosine."""

import itertools
import math

import pytest

from retro.optim.schedules import warmup_cosine

SHAPE = {"steps": 101, "warmup_steps": 11, "peak": 1.0, "minimum": 0.1}


def test_warms_up_linearly_to_the_peak():
    rates = [warmup_cosine(step, **SHAPE) for step in range(11)]
    assert rates == pytest.approx([(i + 1) / 11 for i in range(11)])
    assert rates[-1] == 1.0


def test_decays_along_half_a_cosine_to_the_minimum_at_the_last_step():
    rates = [warmup_cosine(step, **SHAPE) for step in range(10, 101)]
    assert rates == pytest.approx([0.1 + 0.9 * (1 + math.cos(math.pi * i / 90)) / 2 for i in range(91)])
    assert rates[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(rates))


def test_without_warmup_starts_at_the_peak():
    assert warmup_cosine(0, steps=10, warmup_steps=0, peak=2.0, minimum=0.0) == 2.0
    assert warmup_cosine(9, steps=10, warmup_steps=0, peak=2.0, minimum=0.0) == pytest.approx(0.0)


@pytest.mark.parametrize(("steps", "warmup_steps"), [(1, 0), (1, 1), (2, 2), (5, 5)])
def test_degenerate_lengths_stay_between_zero_and_the_peak(steps: int, warmup_steps: int):
    rates = [warmup_cosine(s, steps=steps, warmup_steps=warmup_steps, peak=1.0, minimum=0.5) for s in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == 1.0


def test_decay_may_end_before_the_run_does():
    rates = [warmup_cosine(step, **SHAPE, decay_steps=61) for step in range(101)]
    whole = [warmup_cosine(step, **{**SHAPE, "steps": 61}) for step in range(61)]
    assert rates[:61] == whole
    assert rates[60:] == pytest.approx([0.1] * 41)


@pytest.mark.parametrize("decay_steps", [0, 10, 102])
def test_refuses_a_decay_that_ends_in_the_warmup_or_after_the_run(decay_steps: int):
    with pytest.raises(ValueError, match="decay_steps: expected 11 to 101"):
        warmup_cosine(0, **SHAPE, decay_steps=decay_steps)


@pytest.mark.parametrize("step", [-1, 101])
def test_refuses_steps_outside_the_run(step: int):
    with pytest.raises(ValueError, match="expected 0 to 100"):
        warmup_cosine(step, **SHAPE)
