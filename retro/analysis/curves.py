"""Training curves: thinning for the eye, reading between validations, and the two fair comparisons of training.

Equal steps: both models saw the same data. Equal time: both had the same training seconds on the machine they ran on,
read from the validation curves (linear between two validations). The second flatters whichever run had ended its
learning-rate schedule by then, so the comparison says how far each was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from retro.analysis.runs import Run
from retro.analysis.series import reference_run


@dataclasses.dataclass(frozen=True)
class TrainingSummary:
    """One run's training. tokens_per_s = tokens / training seconds up to the last log line; median_tokens_per_s and
    median_mfu (model FLOPs utilisation, 1 = the device's peak) over the log lines after the first (which may hold
    warm-up); seconds exclude validation and checkpoints."""

    run: str
    steps: int
    tokens: float
    elapsed_s: float
    tokens_per_s: float | None
    median_tokens_per_s: float | None
    median_mfu: float | None
    validation_loss: float | None
    validation_bits_per_byte: float | None


@dataclasses.dataclass(frozen=True)
class Moment:
    """One run's validation at a moment: step and share of its own schedule done; interpolated between validations?"""

    run: str
    step: float
    share_of_steps: float
    elapsed_s: float
    loss: float
    bits_per_byte: float | None
    interpolated: bool


@dataclasses.dataclass(frozen=True)
class TrainingComparison:
    """Candidate against reference in training; a part that the curves do not reach is None.

    same_data: both had read as many tokens at the last step that both logged, in the order of the same seed.
    step_cost: training seconds per token, candidate / reference. seconds_to_match: training seconds after which the
    candidate's validation loss first is at most the reference's final one (None: never).
    """

    candidate: str
    reference: str
    equal_steps: tuple[Moment, Moment] | None  # (candidate, reference)
    equal_time: tuple[Moment, Moment] | None
    same_data: bool
    step_cost: float | None
    seconds_to_match: float | None


def summarise(run: Run) -> TrainingSummary | None:
    """Figures of one run's training; None without metrics."""
    if run.metrics is None or not len(run.metrics.train["step"]):
        return None
    train, validation = run.metrics.train, run.metrics.validation
    elapsed, tokens = float(train["elapsed_s"][-1]), float(train["tokens"][-1])
    usable = np.flatnonzero(np.isfinite(validation["loss"]))
    last = usable[-1] if len(usable) else None
    return TrainingSummary(
        run=run.name,
        steps=int(train["step"][-1]),
        tokens=tokens,
        elapsed_s=elapsed,
        tokens_per_s=tokens / elapsed if elapsed > 0 else None,
        median_tokens_per_s=_median_after_the_first(train["tokens_per_s"]),
        median_mfu=_median_after_the_first(train["mfu"]),
        validation_loss=float(validation["loss"][last]) if last is not None else None,
        validation_bits_per_byte=_or_none(validation["bits_per_byte"][last]) if last is not None else None,
    )


def _median_after_the_first(values: np.ndarray) -> float | None:
    known = values[1:][np.isfinite(values[1:])]
    return float(np.median(known)) if len(known) else None


def compare_training(runs: Sequence[Run]) -> list[TrainingComparison]:
    """Every other run against the reference run; runs without metrics are left out."""
    reference = reference_run(runs)
    base = summarise(reference)
    result = []
    for run in runs:
        own = summarise(run)
        if run is reference or own is None or base is None:
            continue
        final = base.validation_loss
        cost = base.tokens_per_s / own.tokens_per_s if base.tokens_per_s and own.tokens_per_s else None
        result.append(
            TrainingComparison(
                candidate=run.name,
                reference=reference.name,
                equal_steps=_pair(run, reference, "step"),
                equal_time=_pair(run, reference, "elapsed_s"),
                same_data=_same_data(run, reference),
                step_cost=cost,
                seconds_to_match=None if final is None else time_to_reach(run, final),
            )
        )
    return result


def moment_at(run: Run, axis: str, at: float) -> Moment | None:
    """The run's validation where `axis` ("step" or "elapsed_s") is `at`, linear between the two validations around it.

    None outside the validated range: nothing is extrapolated.
    """
    if run.metrics is None:
        return None
    validation = run.metrics.validation
    keep = np.isfinite(validation["loss"])
    x = validation[axis][keep]
    if not len(x) or at < x[0] or at > x[-1]:
        return None

    def read(name: str) -> float:
        return float(np.interp(at, x, validation[name][keep]))

    steps = _planned_steps(run)
    return Moment(
        run=run.name,
        step=read("step"),
        share_of_steps=min(1.0, read("step") / steps) if steps else 1.0,
        elapsed_s=read("elapsed_s"),
        loss=read("loss"),
        bits_per_byte=_or_none(read("bits_per_byte")),
        interpolated=not bool(np.any(x == at)),
    )


def time_to_reach(run: Run, loss: float) -> float | None:
    """Training seconds after which the validation loss first is at most `loss`, linear between validations."""
    if run.metrics is None:
        return None
    validation = run.metrics.validation
    keep = np.isfinite(validation["loss"])
    seconds, losses = validation["elapsed_s"][keep], validation["loss"][keep]
    below = np.flatnonzero(losses <= loss)
    if not len(below):
        return None
    at = int(below[0])
    if at == 0 or losses[at] == losses[at - 1]:
        return float(seconds[at])
    share = (losses[at - 1] - loss) / (losses[at - 1] - losses[at])
    return float(seconds[at - 1] + share * (seconds[at] - seconds[at - 1]))


def _same_data(run: Run, reference: Run) -> bool:
    if run.metrics is None or reference.metrics is None or run.config.get("seed") != reference.config.get("seed"):
        return False
    own, other = run.metrics.train, reference.metrics.train
    # At the last step that both logged: what the longer run read after it is not compared.
    shared, own_at, other_at = np.intersect1d(own["step"], other["step"], return_indices=True)
    return bool(len(shared) and own["tokens"][own_at[-1]] == other["tokens"][other_at[-1]])


def _pair(candidate: Run, reference: Run, axis: str) -> tuple[Moment, Moment] | None:
    ends = []
    for run in (candidate, reference):
        if run.metrics is None:
            return None
        keep = np.isfinite(run.metrics.validation["loss"])
        if not keep.any():
            return None
        ends.append(float(run.metrics.validation[axis][keep][-1]))
    own, other = moment_at(candidate, axis, min(ends)), moment_at(reference, axis, min(ends))
    return (own, other) if own is not None and other is not None else None


def _planned_steps(run: Run) -> float:
    planned = run.config.get("steps")
    if isinstance(planned, int) and planned > 0:
        return float(planned)
    return float(run.metrics.train["step"][-1]) if run.metrics is not None and len(run.metrics.train["step"]) else 0.0


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def thin(x: np.ndarray, y: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `points` points: means of x and y over runs of consecutive finite values. float64 [n] -> [<= points]."""
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    if len(x) <= points:
        return x, y
    edges = np.linspace(0, len(x), points + 1).astype(np.int64)
    width = np.diff(edges)
    return np.add.reduceat(x, edges[:-1]) / width, np.add.reduceat(y, edges[:-1]) / width
