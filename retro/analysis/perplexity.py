"""What retrieval bought in bits per byte: over all chunks, over chunks that do not leak, by overlap, by position.

Every figure is a ratio of sums over chunks (sum of bits / sum of bytes), with an interval from the paired bootstrap
over documents. Gains are reference minus candidate: positive means that the candidate needs fewer bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from retro.analysis.bootstrap import (
    DocumentSums,
    Estimate,
    ratio,
    ratio_difference,
    relative_change,
    share_lost,
)
from retro.analysis.runs import Evaluation, Run
from retro.analysis.scored import ScoredChunks, align, drop_unscored, read_scored_chunks
from retro.analysis.series import Series, describe, main_mode, reference_run

LOW_OVERLAP = 0.5
ALPHAS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
BUCKETS = ((0.0, 0.125), (0.125, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
POSITION_BINS = 16


@dataclasses.dataclass(frozen=True)
class Subset:
    """A set of scored chunks."""

    key: str
    title: str
    chunks: int
    documents: int
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class Score:
    """Bits per byte of one series over one subset."""

    series: str
    subset: str
    bits_per_byte: Estimate


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Candidate against reference over one subset: gain = reference - candidate in bits per byte (positive: candidate
    better), relative = candidate / reference - 1 (negative: candidate better)."""

    candidate: str
    reference: str
    subset: str
    gain: Estimate
    relative: Estimate


@dataclasses.dataclass(frozen=True)
class ShuffledControl:
    """Share of the gain over the reference that is lost when the neighbors are another sequence's (0..1; more than 1:
    shuffled neighbors do harm). None where there is no gain whose interval excludes zero, so nothing to share."""

    run: str
    share: Estimate | None


@dataclasses.dataclass(frozen=True)
class LeakageCurve:
    """bpb(alpha) over the chunks with r(C) <= alpha (RETRO 2.6), per series, and the gain of each main series."""

    alphas: tuple[float, ...]
    chunks: tuple[int, ...]
    share_of_bytes: tuple[float, ...]
    bits_per_byte: dict[str, list[Estimate]]
    gain: dict[str, list[Estimate]]


@dataclasses.dataclass(frozen=True)
class PositionCurve:
    """Loss (nats per token) by place in the chunk, over chunks that retrieval serves, in bins of positions.

    starts, stops: first and last position (0-based, inclusive) of each bin; loss: series -> per bin; gain: main series
    -> reference minus candidate per bin.
    """

    starts: tuple[int, ...]
    stops: tuple[int, ...]
    loss: dict[str, list[Estimate]]
    gain: dict[str, list[Estimate]]


@dataclasses.dataclass(frozen=True)
class PerplexityComparison:
    """All of the above for one evaluation (`eval/<name>`) over all runs that have it."""

    name: str
    split: str
    series: tuple[Series, ...]
    main: tuple[str, ...]  # keys of the main series, the reference's first
    subsets: tuple[Subset, ...]
    buckets: tuple[Subset, ...]
    scores: tuple[Score, ...]
    contrasts: tuple[Contrast, ...]
    shuffled: tuple[ShuffledControl, ...]
    leakage: LeakageCurve | None
    positions: PositionCurve | None
    left_out: int  # chunks that some series has no score for, left out of all
    draws: int

    def score(self, series: str, subset: str = "all") -> Estimate:
        """Bits per byte of a series over a subset."""
        return next(s.bits_per_byte for s in self.scores if s.series == series and s.subset == subset)

    def contrast(self, candidate: str, reference: str, subset: str = "all") -> Contrast | None:
        """The contrast of two series over a subset, if it was made."""
        for item in self.contrasts:
            if (item.candidate, item.reference, item.subset) == (candidate, reference, subset):
                return item
        return None

    def labels(self) -> dict[str, str]:
        """series key -> label."""
        return {item.key: item.label for item in self.series}


def compare_perplexity(runs: Sequence[Run], name: str, draws: int, seed: int) -> PerplexityComparison | None:
    """Compare the runs that have the evaluation `name`; None if none of them stored responses.

    Raises ArtifactMismatchError when they scored different text.
    """
    having = [run for run in runs if name in run.evaluations and run.evaluations[name].responses]
    if not having:
        return None
    scored = align(having, name, {run.name: read_scored_chunks(run.evaluations[name]) for run in having})
    scored, left_out = drop_unscored(scored)
    return _Analysis(runs, having, name, scored, left_out, draws, seed).result()


class _Analysis:
    """Columns first, statistics second: see DocumentSums."""

    def __init__(
        self,
        runs: Sequence[Run],
        having: Sequence[Run],
        name: str,
        scored: dict[str, ScoredChunks],
        left_out: int,
        draws: int,
        seed: int,
    ) -> None:
        self.name, self.having, self.scored = name, having, scored
        self.reference = reference_run(runs) if reference_run(runs) in having else having[0]
        evaluations: dict[str, Evaluation] = {run.name: run.evaluations[name] for run in having}
        self.split = str(evaluations[self.reference.name].results.get("split", ""))
        ordered = [self.reference] + [run for run in having if run is not self.reference]
        self.series = tuple(describe(runs, run, mode) for run in ordered for mode in evaluations[run.name].modes)
        self.main = {run.name: f"{run.name}/{main_mode(evaluations[run.name].modes)}" for run in ordered}
        base = scored[self.reference.name]
        self.num_bytes = base.num_bytes
        # The text is the same: a run without a database leaves r(C) empty, and of two retrievers the one that finds
        # more of the chunk says whether it leaks.
        self.overlaps = np.fmax.reduce([item.overlaps for item in scored.values()])
        self.base, self.left_out, self.draws = base, left_out, draws
        self.sums = DocumentSums(base.documents, draws, seed)
        self.masks: dict[str, np.ndarray] = {}

    def bits(self, series: Series) -> np.ndarray:
        return self.scored[series.run].bits[series.mode]

    def result(self) -> PerplexityComparison:
        everything = np.ones(len(self.num_bytes), bool)
        served = self.base.served
        measured = ~np.isnan(self.overlaps)
        subsets = [self._subset("all", "all chunks", everything)]
        if measured.any():
            title = f"chunks with r(C) ≤ {LOW_OVERLAP:g}"
            subsets.append(self._subset("low_overlap", title, measured & (self.overlaps <= LOW_OVERLAP)))
        if served.any() and not served.all():
            subsets.append(self._subset("served", "chunks that retrieval serves", served))
            subsets.append(self._subset("unserved", "first chunks of a document or sequence", ~served))
        buckets = []
        for low, high in BUCKETS if measured.any() else ():
            inside = measured & (self.overlaps <= high) & ((self.overlaps > low) | (low == 0))
            first = "[" if low == 0 else "("
            buckets.append(self._subset(f"bucket:{high:g}", f"{first}{low:g}, {high:g}]", inside))
        alphas = ALPHAS if measured.any() else ()
        leak = [self._subset(f"alpha:{alpha:g}", f"{alpha:g}", measured & (self.overlaps <= alpha)) for alpha in alphas]
        bins = self._add_positions(served)

        scores = [Score(s.key, t.key, self._score(s.key, t.key)) for t in [*subsets, *buckets] for s in self.series]
        contrasts = [
            self._contrast(candidate, reference, t.key)
            for t in [*subsets, *buckets]
            for candidate, reference in self._pairs()
        ]
        leakage = None
        if leak:
            total = sum(int(n) for n in self.num_bytes[measured])
            leakage = LeakageCurve(
                alphas=tuple(alphas),
                chunks=tuple(t.chunks for t in leak),
                share_of_bytes=tuple(t.num_bytes / total if total else 0.0 for t in leak),
                bits_per_byte={s.key: [self._score(s.key, t.key) for t in leak] for s in self.series},
                gain={c: [self._contrast(c, r, t.key).gain for t in leak] for c, r in self._main_pairs()},
            )
        return PerplexityComparison(
            name=self.name,
            split=self.split,
            series=self.series,
            main=tuple(self.main.values()),
            subsets=tuple(subsets),
            buckets=tuple(buckets),
            scores=tuple(scores),
            contrasts=tuple(contrasts),
            shuffled=tuple(self._shuffled_controls()),
            leakage=leakage,
            positions=self._positions(bins),
            left_out=self.left_out,
            draws=self.draws,
        )

    def _subset(self, key: str, title: str, mask: np.ndarray) -> Subset:
        self.sums.add(f"bytes|{key}", self.num_bytes * mask)
        for series in self.series:
            self.sums.add(f"bits|{series.key}|{key}", self.bits(series) * mask)
        documents = len(np.unique(self.base.documents[mask]))
        return Subset(key, title, int(mask.sum()), documents, int(self.num_bytes[mask].sum()))

    def _main_pairs(self) -> list[tuple[str, str]]:
        """(candidate, reference) between runs; within one run, on against off, if there is only one."""
        keys = list(self.main.values())
        if len(keys) > 1:
            return [(key, keys[0]) for key in keys[1:]]
        run = self.reference.name
        modes = [s.mode for s in self.series]
        return [(f"{run}/on", f"{run}/off")] if {"on", "off"} <= set(modes) else []

    def _pairs(self) -> list[tuple[str, str]]:
        reference = self.main[self.reference.name]
        pairs = [(s.key, reference) for s in self.series if s.run != self.reference.name]
        for run, main in self.main.items():  # within a run: its own controls against its main mode
            pairs += [(main, s.key) for s in self.series if s.run == run and s.key != main]
        return pairs

    def _score(self, series: str, subset: str) -> Estimate:
        return self.sums.estimate(ratio, f"bits|{series}|{subset}", f"bytes|{subset}")

    def _contrast(self, candidate: str, reference: str, subset: str) -> Contrast:
        a, b = f"bits|{reference}|{subset}", f"bits|{candidate}|{subset}"
        size = f"bytes|{subset}"
        gain = self.sums.estimate(ratio_difference, a, b, size)
        return Contrast(candidate, reference, subset, gain, self.sums.estimate(relative_change, a, b, support=size))

    def _shuffled_controls(self) -> list[ShuffledControl]:
        controls = []
        keys = {s.key for s in self.series}
        for candidate, reference in self._main_pairs():
            run = candidate.rpartition("/")[0]
            if not candidate.endswith("/on") or f"{run}/shuffled" not in keys:
                continue
            gain = self._contrast(candidate, reference, "all").gain
            share = None
            if gain.excludes_zero and gain.value is not None and gain.value > 0:
                columns = [f"bits|{key}|all" for key in (reference, candidate, f"{run}/shuffled")]
                share = self.sums.estimate(share_lost, *columns, support="bytes|all")
            controls.append(ShuffledControl(run, share))
        return controls

    def _add_positions(self, served: np.ndarray) -> list[tuple[int, int]]:
        """Column per series and bin of positions: summed loss, number of tokens; [] without stored log-probabilities.

        In a served chunk every token is scored, so log-probability j belongs to position j.
        """
        rows = np.flatnonzero(served)
        lengths = self.base.tokens[rows]
        length = int(lengths.max()) if len(rows) else 0
        if not length:
            return []
        losses = {}
        for series in self.series:
            stored = self.scored[series.run].logprobs[series.mode]
            if any(len(stored[row]) != n for row, n in zip(rows, lengths, strict=True)):
                return []
            table = np.full((len(rows), length), np.nan)
            for i, row in enumerate(rows):
                table[i, : lengths[i]] = stored[row]
            losses[series.key] = -table
        known = np.all([np.isfinite(table) for table in losses.values()], axis=0)
        width = -(-length // POSITION_BINS)
        bins = [(start, min(start + width, length) - 1) for start in range(0, length, width)]
        for number, (start, stop) in enumerate(bins):
            inside = slice(start, stop + 1)
            self._add_rows(f"tokens|{number}", rows, known[:, inside].sum(axis=1))
            for key, table in losses.items():
                self._add_rows(f"nats|{key}|{number}", rows, np.where(known, table, 0.0)[:, inside].sum(axis=1))
        return bins

    def _add_rows(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        column = np.zeros(len(self.num_bytes))
        column[rows] = values
        self.sums.add(name, column)

    def _positions(self, bins: list[tuple[int, int]]) -> PositionCurve | None:
        if not bins:
            return None
        numbers = range(len(bins))
        return PositionCurve(
            starts=tuple(start for start, _ in bins),
            stops=tuple(stop for _, stop in bins),
            loss={
                s.key: [self.sums.estimate(ratio, f"nats|{s.key}|{n}", f"tokens|{n}") for n in numbers]
                for s in self.series
            },
            gain={
                c: [
                    self.sums.estimate(ratio_difference, f"nats|{r}|{n}", f"nats|{c}|{n}", f"tokens|{n}")
                    for n in numbers
                ]
                for c, r in self._main_pairs()
            },
        )
