"""Which charts the report has: Comparison and runs in, Chart descriptions out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retro.analysis.bootstrap import Estimate
from retro.analysis.curves import thin
from retro.analysis.perplexity import PerplexityComparison
from retro.analysis.runs import Run
from retro.analysis.series import role_of, run_titles
from retro.analysis.svg import Chart, Line
from retro.analysis.tables import main_pairs

TRAIN_POINTS = 120
VALIDATION_POINTS = 60


def training_charts(runs: Sequence[Run]) -> list[Chart]:
    """Loss against steps and against training time; [] without metrics."""
    charts = []
    longest = max(
        (float(run.metrics.train["elapsed_s"][-1]) for run in runs if run.metrics and len(run.metrics.train["step"])),
        default=0.0,
    )
    unit, word = (1.0, "seconds") if longest < 180 else (60.0, "minutes") if longest < 7200 else (3600.0, "hours")
    for axis, scale, title, label in (
        ("step", 1.0, "At equal steps", "optimizer step"),
        ("elapsed_s", unit, "At equal training time", f"training time, {word}"),
    ):
        lines = _training_lines(runs, axis, scale)
        if lines:
            charts.append(
                Chart(
                    title,
                    label,
                    "loss, nats per token",
                    lines,
                    y_top=_top(lines),
                    x_range=(0.0, max(float(max(line.x)) for line in lines) or 1.0),
                    x_format=lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.1f}",
                    table=False,
                    x_name="step" if axis == "step" else word,
                )
            )
    return charts


def _training_lines(runs: Sequence[Run], axis: str, scale: float) -> list[Line]:
    titles = run_titles(runs)
    faint: list[Line] = []
    solid: list[Line] = []
    for run in runs:
        if run.metrics is None:
            continue
        role = role_of(runs, run)
        for event, columns, points in (
            ("training", run.metrics.train, TRAIN_POINTS),
            ("validation", run.metrics.validation, VALIDATION_POINTS),
        ):
            x, y = thin(columns[axis] / scale, columns["loss"], points)
            if len(x):
                line = Line(
                    f"{titles[run.name]}, {event}",
                    role,
                    x.tolist(),
                    y.tolist(),
                    kind="faint" if event == "training" else "line",
                    markers=len(x) <= 25,
                )
                (faint if event == "training" else solid).append(line)
    return faint + solid


def _top(lines: Sequence[Line]) -> float | None:
    """Where to cut the first, steep part off: the highest value after the first 8% of the axis."""
    end = max(float(max(line.x)) for line in lines)
    later = [y for line in lines for x, y in zip(line.x, line.y, strict=True) if y is not None and x > 0.08 * end]
    return float(np.max(later)) if later else None


def leakage_charts(result: PerplexityComparison) -> list[Chart]:
    """bpb(alpha) of every series, and the paired gain; [] without r(C)."""
    curve = result.leakage
    if curve is None:
        return []
    alphas = list(curve.alphas)
    ticks = [(alpha, f"{alpha:g}") for alpha in (0.125, 0.25, 0.5, 0.75, 1.0)]
    lines = [Line(item.label, item.role, alphas, _values(curve.bits_per_byte[item.key])) for item in result.series]
    levels = Chart(
        "Leakage curve, bpb(α)",
        "α: chunks with r(C) ≤ α only",
        "bits per byte",
        lines,
        caption="r(C) is the longest run of tokens that a chunk shares with its ten nearest neighbors, as a share of "
        "the chunk. At α = 1 every chunk counts; to the left, only chunks that copy little.",
        x_ticks=ticks,
        x_name="α =",
    )
    gain_lines = _gain_lines(result, curve.gain, alphas)
    if not gain_lines:
        return [levels]
    gains = Chart(
        f"Gain over {_against(result)} by α",
        "α: chunks with r(C) ≤ α only",
        "gain, bits per byte",
        gain_lines,
        caption="Above zero: retrieval helps. A gain that stays at small α is not copying of long passages. "
        "Band: 95%, paired bootstrap over documents.",
        x_ticks=ticks,
        zero=True,
        y_format=lambda value: f"{value:+.4f}",
        x_name="α =",
    )
    return [levels, gains]


def bucket_chart(result: PerplexityComparison) -> Chart | None:
    """Gain by overlap bucket with whiskers; None without r(C)."""
    pairs = main_pairs(result)
    if not result.buckets or not pairs:
        return None
    lines = []
    for place, (candidate, reference) in enumerate(pairs):
        gains = [c.gain for b in result.buckets if (c := result.contrast(candidate, reference, b.key)) is not None]
        shift = (place - (len(pairs) - 1) / 2) * 0.16
        lines.append(_line(_item(result, candidate), [i + shift for i in range(len(gains))], gains, kind="points"))
    names = [f"{b.title}" for b in result.buckets]
    return Chart(
        f"Gain over {_against(result)} by overlap",
        "r(C): share of the chunk that one neighbor repeats",
        "gain, bits per byte",
        lines,
        caption="Whiskers: 95%, paired bootstrap over documents. Chunks per bucket: "
        + ", ".join(f"{b.chunks:,}" for b in result.buckets)
        + ".",
        x_ticks=list(enumerate(names)),
        x_range=(-0.5, len(names) - 0.5),
        zero=True,
        x_name="r(C) in",
        x_format=lambda value: names[min(max(round(value), 0), len(names) - 1)],
        y_format=lambda value: f"{value:+.4f}",
    )


def position_charts(result: PerplexityComparison) -> list[Chart]:
    """Loss and gain by place in the chunk; [] without stored log-probabilities."""
    curve = result.positions
    if curve is None:
        return []
    middles = [(start + stop) / 2 + 1 for start, stop in zip(curve.starts, curve.stops, strict=True)]
    width = curve.stops[0] - curve.starts[0] + 1

    def bin_name(value: float) -> str:
        start = value - (width - 1) / 2
        return f"{value:.0f}" if width == 1 else f"{start:.0f} to {start + width - 1:.0f}"

    end = curve.stops[-1] + 1
    ticks = [(float(v), str(v)) for v in sorted({1, *(end * i // 4 for i in range(1, 5))}) if v >= 1]
    levels = Chart(
        "Loss by position in the chunk",
        "position in the chunk",
        "loss, nats per token",
        [Line(item.label, item.role, middles, _values(curve.loss[item.key])) for item in result.series],
        caption="Only chunks that retrieval serves: not a sequence's first, nor a document's first.",
        x_ticks=ticks,
        x_range=(0.0, end + 1.0),
        x_name="position",
        x_format=bin_name,
    )
    lines = _gain_lines(result, curve.gain, middles)
    if not lines:
        return [levels]
    gains = Chart(
        f"Gain over {_against(result)} by position",
        "position in the chunk",
        "gain, nats per token",
        lines,
        caption="Band: 95%, paired bootstrap over documents.",
        x_ticks=ticks,
        x_range=(0.0, end + 1.0),
        x_name="position",
        zero=True,
        x_format=bin_name,
        y_format=lambda value: f"{value:+.3f}",
    )
    return [levels, gains]


def _gain_lines(result: PerplexityComparison, gain: dict[str, list[Estimate]], x: list[float]) -> list[Line]:
    return [_line(_item(result, key), x, estimates) for key, estimates in gain.items()]


def _line(item: tuple[str, str], x: Sequence[float], estimates: Sequence[Estimate], kind: str = "line") -> Line:
    label, role = item
    return Line(
        label, role, list(x), _values(estimates), [e.low for e in estimates], [e.high for e in estimates], kind=kind
    )


def _item(result: PerplexityComparison, key: str) -> tuple[str, str]:
    item = next(s for s in result.series if s.key == key)
    return item.label, item.role


def _against(result: PerplexityComparison) -> str:
    pairs = main_pairs(result)
    return _item(result, pairs[0][1])[0] if pairs else ""


def _values(estimates: Sequence[Estimate]) -> list[float | None]:
    return [e.value for e in estimates]
