"""A small SVG chart writer: lines, bands, points with whiskers, axes, ticks. Colours are classes, so that CSS decides.

Coordinates are rounded to 0.1 unit and every number is formatted here, so equal input gives equal bytes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Sequence
from html import escape

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 22, 12, 50


@dataclasses.dataclass(frozen=True)
class Line:
    """One series. x, y: data values (NaN or None breaks the line); low/high: interval per point or None; role: CSS
    class that gives colour, dash and marker; kind: "line", "faint" (thin, no markers) or "points" (only whiskers);
    band: whether a line's intervals are drawn, and not in tooltips and numbers only."""

    label: str
    role: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    kind: str = "line"
    markers: bool = True
    band: bool = True


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart. x_ticks: (value, text) pairs or None for round numbers; zero: draw and include y = 0; y_top: cut the
    vertical range there (lines beyond leave the frame); x_format / y_format: numbers in ticks and tooltips."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    caption: str = ""
    x_ticks: Sequence[tuple[float, str]] | None = None
    x_range: tuple[float, float] | None = None
    zero: bool = False
    y_top: float | None = None
    x_format: Callable[[float], str] = lambda value: f"{value:g}"
    y_format: Callable[[float], str] = lambda value: f"{value:.3f}"
    table: bool = True
    x_name: str = ""  # short name of x in tooltips; empty = x_label


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (steps of 1, 2, 2.5 or 5 times a power of ten) inside [low, high], about `count` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low] if math.isfinite(low) else []
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.75)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def tick_label(value: float, ticks: Sequence[float]) -> str:
    """As many decimals as the distance between ticks needs; thousands as '12k'."""
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=abs(value) or 1.0)
    if step >= 1000 and max(abs(t) for t in ticks) >= 10000:
        return f"{value / 1000:g}k"
    text = f"{step:.10f}".rstrip("0")
    decimals = len(text.split(".")[1]) if "." in text else 0
    return f"{value:.{min(decimals, 6)}f}".replace("-", "−")


def render(chart: Chart, ident: str) -> str:
    """The chart as one <svg> element. ident: unique id within the page."""
    x_low, x_high = chart.x_range or _range([x for line in chart.lines for x in line.x], 0.0)
    y_low, y_high = _y_range(chart)
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def px(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * inner_width

    def py(y: float) -> float:
        return TOP + (y_high - y) / (y_high - y_low) * inner_height

    parts = [
        f'<svg class="chart" id="{ident}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-labelledby="{ident}-title" data-lines="{escape(_hover_data(chart, px, py), quote=True)}">',
        f'<title id="{ident}-title">{escape(chart.title)}</title>',
        f'<clipPath id="{ident}-clip"><rect x="{LEFT - 6}" y="{TOP - 4}" width="{inner_width + 12}" '
        f'height="{inner_height + 8}"/></clipPath>',
        '<g class="grid">',
    ]
    y_ticks = nice_ticks(y_low, y_high)
    parts += [f'<path d="M{LEFT} {_n(py(t))}H{WIDTH - RIGHT}"/>' for t in y_ticks]
    parts.append("</g>")
    x_ticks = chart.x_ticks
    if x_ticks is None:
        values = nice_ticks(x_low, x_high)
        x_ticks = [(value, tick_label(value, values)) for value in values]
    if chart.zero and y_low <= 0 <= y_high:
        parts.append(f'<path class="zero" d="M{LEFT} {_n(py(0))}H{WIDTH - RIGHT}"/>')
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append('<g class="ticks">')
    for t in y_ticks:
        parts.append(f'<text x="{LEFT - 8}" y="{_n(py(t) + 4)}" text-anchor="end">{tick_label(t, y_ticks)}</text>')
    for value, text in x_ticks:
        at = px(value)
        parts.append(f'<path class="axis" d="M{_n(at)} {HEIGHT - BOTTOM}v4"/>')
        parts.append(f'<text x="{_n(at)}" y="{HEIGHT - BOTTOM + 19}" text-anchor="middle">{escape(text)}</text>')
    parts.append("</g>")
    middle = LEFT + inner_width / 2
    parts.append(
        f'<text class="label" x="{_n(middle)}" y="{HEIGHT - 7}" text-anchor="middle">{escape(chart.x_label)}</text>'
    )
    parts.append(f'<g clip-path="url(#{ident}-clip)">')
    for line in chart.lines:
        parts += _draw(line, px, py)
    parts += ["</g>", '<g class="cursor"></g>', "</svg>"]
    return "".join(parts)


def _draw(line: Line, px: Callable[[float], float], py: Callable[[float], float]) -> list[str]:
    points = [
        None if y is None or not math.isfinite(y) else (px(x), py(y)) for x, y in zip(line.x, line.y, strict=True)
    ]
    bounds: list[tuple[float, float, float] | None] = [None] * len(points)
    if line.low is not None and line.high is not None:
        bounds = [
            None if low is None or high is None else (px(x), py(low), py(high))
            for x, low, high in zip(line.x, line.low, line.high, strict=True)
        ]
    parts = [f'<g class="{line.kind} {line.role}">']
    if line.kind == "points":
        for x, low, high in (b for b in bounds if b is not None):
            ends = f"M{_n(x - 5)} {_n(low)}h10M{_n(x - 5)} {_n(high)}h10"
            parts.append(f'<path class="whisker" d="M{_n(x)} {_n(low)}V{_n(high)}{ends}"/>')
    else:
        for run in _unbroken(bounds if line.band else []):
            if len(run) > 1:
                there = "L".join(f"{_n(x)} {_n(high)}" for x, _, high in run)
                back = "L".join(f"{_n(x)} {_n(low)}" for x, low, _ in reversed(run))
                parts.append(f'<path class="band" d="M{there}L{back}Z"/>')
        for run in _unbroken(points):
            if len(run) > 1:
                parts.append('<path class="line" d="M' + "L".join(f"{_n(x)} {_n(y)}" for x, y in run) + '"/>')
    if line.markers and line.kind != "faint":
        parts += [_marker(line.role, x, y) for x, y in (p for p in points if p is not None)]
    return [*parts, "</g>"]


def _marker(role: str, x: float, y: float) -> str:
    """Shapes differ as well as colours."""
    if role == "gpt":
        return f'<circle cx="{_n(x)}" cy="{_n(y)}" r="3.4"/>'
    if role == "off":
        return f'<path class="mark" d="M{_n(x - 4)} {_n(y + 3.4)}h8l-4 -7.4Z"/>'
    if role == "shuffled":
        return f'<path class="mark" d="M{_n(x)} {_n(y - 4.6)}l4.6 4.6l-4.6 4.6l-4.6 -4.6Z"/>'
    return f'<path class="mark" d="M{_n(x - 3.2)} {_n(y - 3.2)}h6.4v6.4h-6.4Z"/>'


def swatch(role: str, kind: str = "line") -> str:
    """A legend's sample of a series."""
    marker = "" if kind == "faint" else _marker(role, 13, 6)
    line = "" if kind == "points" else '<path class="line" d="M0 6L26 6"/>'
    return (
        f'<svg class="swatch" viewBox="0 0 26 12" width="26" height="12" aria-hidden="true">'
        f'<g class="{kind} {role}">{line}{marker}</g></svg>'
    )


def _unbroken(items: Sequence) -> list[list]:
    runs: list[list] = [[]]
    for item in items:
        if item is None:
            runs.append([])
        else:
            runs[-1].append(item)
    return [run for run in runs if run]


def _y_range(chart: Chart) -> tuple[float, float]:
    values = [v for line in chart.lines for v in (*line.y, *(line.low or ()), *(line.high or ()))]
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if chart.y_top is not None:
        finite = [min(v, chart.y_top) for v in finite]
    if chart.zero:
        finite.append(0.0)
    return _range(finite, 0.06)


def _range(values: Sequence[float], pad: float) -> tuple[float, float]:
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    if high - low < 1e-12:
        space = abs(high) * 0.05 or 1.0
        return low - space, high + space
    return low - pad * (high - low), high + pad * (high - low)


def _hover_data(chart: Chart, px: Callable[[float], float], py: Callable[[float], float]) -> str:
    lines = []
    for line in chart.lines:
        points = []
        for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
            if y is None or not math.isfinite(y):
                continue
            text = chart.y_format(y)
            low = line.low[i] if line.low is not None else None
            high = line.high[i] if line.high is not None else None
            if low is not None and high is not None:
                text += f" [{chart.y_format(low)}, {chart.y_format(high)}]"
            points.append([float(_n(px(x))), float(_n(py(y))), chart.x_format(x), text.replace("-", "−")])
        lines.append({"label": line.label, "role": line.role, "points": points})
    return json.dumps({"x": chart.x_name or chart.x_label, "lines": lines}, ensure_ascii=False, separators=(",", ":"))


def _n(value: float) -> str:
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text
