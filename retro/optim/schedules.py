"""Learning-rate schedules: pure functions of the step, so there is no state to save."""

from __future__ import annotations

import math


def warmup_cosine(
    step: int, *, steps: int, warmup_steps: int, peak: float, minimum: float, decay_steps: int | None = None
) -> float:
    """Learning rate of the optimizer step `step` (0-based, 0..steps-1).

    Rises linearly to `peak`, which the last warm-up step has (step 0 has peak / warmup_steps, not 0: no step is
    wasted), then falls along half a cosine to `minimum`, which the last of `decay_steps` steps has, warm-up included;
    the steps after that keep it. decay_steps None = all steps (Loshchilov and Hutter 2017, without restarts; the recipe
    of Wang et al. 2023, arXiv 2304.06762, table 10, whose decay ends after 166.4M of 192M samples). Raises ValueError
    for a step outside the run, and for a decay that ends outside it or within the warm-up.
    """
    if not 0 <= step < steps:
        raise ValueError(f"step: expected 0 to {steps - 1}, found {step}")
    end = steps if decay_steps is None else decay_steps
    if not max(warmup_steps, 1) <= end <= steps:
        raise ValueError(f"decay_steps: expected {max(warmup_steps, 1)} to {steps}, found {end}")
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    start = max(warmup_steps - 1, 0)  # the step that has the peak
    progress = min((step - start) / max(end - 1 - start, 1), 1.0)
    return minimum + (peak - minimum) * 0.5 * (1.0 + math.cos(math.pi * progress))
