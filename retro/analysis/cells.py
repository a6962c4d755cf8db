"""What tables are made of: rows of text with an estimate beside them, and figures with their intervals as text."""

from __future__ import annotations

import dataclasses

from retro.analysis.bootstrap import Estimate


def percent(value: float, digits: int = 1) -> str:
    """0.0123 -> '+1.2%'."""
    return f"{round(100 * value, digits) + 0.0:+.{digits}f}%"


@dataclasses.dataclass(frozen=True)
class Row:
    """cells: text per column; series: key of the series the row is about (its colour), or None; estimate: what a small
    interval drawing would show (reference = 0), or None; group: heading above the row when it changes."""

    cells: tuple[str, ...]
    series: str | None = None
    estimate: Estimate | None = None
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """title, column heads, rows. Columns after the first `text_columns` are numbers; `optional` ones are left out, the
    first named first, where a terminal is too narrow."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    text_columns: int = 1
    caption: str = ""
    optional: tuple[int, ...] = ()


def figure(estimate: Estimate, digits: int = 3, signed: bool = False) -> str:
    """'2.113 [2.091, 2.135]'; '-' where there is nothing."""
    if estimate.value is None:
        return "-"
    form = f"{'+' if signed else ''}.{digits}f"
    text = format(round(estimate.value, digits) + 0.0, form)
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{round(estimate.low, digits) + 0.0:{form}}, {round(estimate.high, digits) + 0.0:{form}}]"


def percentage(estimate: Estimate) -> str:
    """'-4.0% [-4.6, -3.4]'."""
    if estimate.value is None:
        return "-"
    text = percent(estimate.value)
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{percent(estimate.low)[:-1]}, {percent(estimate.high)[:-1]}]"


def scaled(estimate: Estimate) -> Estimate:
    """A share as percent."""
    return Estimate(*(None if v is None else 100 * v for v in (estimate.value, estimate.low, estimate.high)))


def negated(estimate: Estimate) -> Estimate:
    """The other way round: reference minus candidate."""
    value, low, high = (None if v is None else -v for v in (estimate.value, estimate.low, estimate.high))
    return Estimate(value, high, low)


def left_out(count: int, what: str) -> str:
    """The end of a caption that says what every row goes without, or nothing."""
    return f" Left out of every row: {count:,} {what} for which some row has no score." if count else ""
