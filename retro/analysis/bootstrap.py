"""Paired bootstrap over documents: resample whole documents, keep ratio estimators as ratios of sums.

Chunks of one document are not independent, so the document is the unit that is drawn (with replacement, as many as
there are). All series share the same draws, which is what makes differences between them paired.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

DRAWS = 2000
CONFIDENCE = 0.95
# Below this many documents with a value a percentile interval says nothing about the population.
MIN_DOCUMENTS = 5
_BATCH_VALUES = 4_000_000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure with its 95% percentile interval; value None = nothing to measure, low/high None = too few documents."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def has_interval(self) -> bool:
        """Whether an interval could be given."""
        return self.low is not None and self.high is not None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies wholly on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def resampled_sums(sums_DC: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Column sums over documents drawn with replacement.

    sums_DC: float64 [D, C], one row per document. Returns float64 [draws, C]: row i is the sum of D rows of `sums_DC`
    drawn uniformly. The draws depend on (D, seed) alone, so columns are paired; memory stays bounded for any D.
    """
    sums_DC = np.asarray(sums_DC, np.float64)
    documents, columns = sums_DC.shape
    result = np.zeros((draws, columns))
    if documents == 0:
        return result
    generator = np.random.Generator(np.random.Philox(seed))
    batch = max(1, _BATCH_VALUES // documents)
    for start in range(0, draws, batch):
        count = min(batch, draws - start)
        picks = generator.integers(0, documents, size=(count, documents), dtype=np.int64)
        picks += np.arange(count, dtype=np.int64)[:, None] * documents
        times = np.bincount(picks.ravel(), minlength=count * documents).reshape(count, documents)
        result[start : start + count] = times.astype(np.float64) @ sums_DC
    return result


def percentile_interval(draws: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Central percentile interval of the finite draws; None if fewer than half of them are finite."""
    finite = draws[np.isfinite(draws)]
    if len(finite) * 2 < len(draws) or not len(finite):
        return None
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


class DocumentSums:
    """Named per-unit values, summed per document, and statistics of their totals with intervals.

    Add every column first, then ask for estimates; the resampling happens once, at the first estimate.
    """

    def __init__(self, documents_C: np.ndarray, draws: int = DRAWS, seed: int = 0) -> None:
        """documents_C: int64 [C], the document (0..D-1) of each unit (chunk, question)."""
        self.documents_C = np.asarray(documents_C, np.int64)
        self.num_documents = int(self.documents_C.max()) + 1 if len(self.documents_C) else 0
        self.draws, self.seed = draws, seed
        self._columns: dict[str, np.ndarray] = {}
        self._resampled: np.ndarray | None = None
        self._index: dict[str, int] = {}

    def add(self, name: str, values_C: np.ndarray) -> None:
        """Sum `values_C` (float [C], 0 where a unit does not belong) per document under `name`."""
        if self._resampled is not None:
            raise RuntimeError("columns cannot be added after the first estimate")
        self._columns[name] = np.bincount(self.documents_C, np.asarray(values_C, np.float64), self.num_documents)

    def total(self, name: str) -> float:
        """Sum over all documents."""
        return float(self._columns[name].sum())

    def documents_with(self, name: str) -> int:
        """How many documents have a non-zero sum."""
        return int(np.count_nonzero(self._columns[name]))

    def estimate(self, statistic: Callable[..., np.ndarray], *names: str, support: str | None = None) -> Estimate:
        """`statistic` of the named totals, with the interval of the same statistic over the draws.

        The statistic gets one float64 array per name and works element by element. `support` names the column whose
        non-zero documents count as evidence (default: the last name).
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(statistic(*(np.array([self.total(name)]) for name in names))[0])
            if not math.isfinite(value):
                return Estimate(None)
            if self.documents_with(support or names[-1]) < MIN_DOCUMENTS:
                return Estimate(value)
            interval = percentile_interval(statistic(*(self._draws_of(name) for name in names)))
        return Estimate(value, *interval) if interval else Estimate(value)

    def _draws_of(self, name: str) -> np.ndarray:
        if self._resampled is None:
            self._index = {column: i for i, column in enumerate(self._columns)}
            table_DC = np.stack(list(self._columns.values()), axis=1)
            self._resampled = resampled_sums(table_DC, self.draws, self.seed)
        return self._resampled[:, self._index[name]]


def ratio(bits: np.ndarray, size: np.ndarray) -> np.ndarray:
    """bits / bytes."""
    return bits / size


def ratio_difference(reference: np.ndarray, candidate: np.ndarray, size: np.ndarray) -> np.ndarray:
    """reference minus candidate, per byte: positive when the candidate is better."""
    return (reference - candidate) / size


def relative_change(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """candidate / reference - 1: negative when the candidate is better."""
    return candidate / reference - 1


def share_lost(reference: np.ndarray, on: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    """Share of the gain of `on` over `reference` that is gone with `shuffled`: 0 = none, 1 = all of it."""
    return (shuffled - on) / (reference - on)
