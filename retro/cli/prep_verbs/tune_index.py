"""`retro prep tune-index`: what the search settings of a finished index cost and bring."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from retro.cli.prep_verbs.configured import add_config, read_config
from retro.config.errors import ConfigError

if TYPE_CHECKING:
    from data_prep.tune_index import Frontier, Point


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--queries", type=int, default=512, help="vectors of the database searched for (default 512)")
    parser.add_argument("--at", type=int, default=10, help="k of recall@k (default 10)")
    for name, what in (
        ("probes", "lists looked at"),
        ("ef-search", "efSearch"),
        ("k-factor", "candidates per neighbor"),
    ):
        parser.add_argument(f"--{name}", type=_numbers, help=f"{what}, e.g. 1,4,16; default: doubled while it helps")
    parser.add_argument("--target", type=float, default=0.95, help="recall that is asked for (default 0.95)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each setting (default 5)")
    parser.add_argument("--out", help="folder for tune_index.json and tune_index.html; default: nothing is written")
    add_config(parser)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, found {text!r}") from None


def run(arguments: argparse.Namespace) -> int:
    """Print a table, the frontier marked, and the cheapest setting with the recall asked for."""
    from data_prep.tune_index import Sweep, finished_index, to_json, tune

    sweep = Sweep(
        arguments.queries,
        arguments.at,
        arguments.probes,
        arguments.ef_search,
        arguments.k_factor,
        arguments.repeats,
        arguments.target,
    )
    out = None if arguments.out is None else _folder(Path(arguments.out))
    index = finished_index(read_config(arguments))
    found = tune(index, sweep, lambda point: sys.stderr.write(f"{_name(point)}: recall {point.recall:.3f}\n"))
    for line in lines(found):
        print(line)
    if out is not None:
        text = json.dumps(to_json(found), indent=1, sort_keys=True)
        (out / "tune_index.json").write_text(text + "\n", encoding="utf-8")
        (out / "tune_index.html").write_text(page(found), encoding="utf-8")
        print(f"written: {out / 'tune_index.json'}, {out / 'tune_index.html'}")
    return 0


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: {path} cannot be made ({error.strerror}); choose another folder") from None
    for name in ("tune_index.json", "tune_index.html"):
        if (path / name).exists():
            raise ConfigError(f"--out: {path / name} is there already; choose another folder or move it away")
    return path


def lines(found: Frontier) -> list[str]:
    """The frontier for people: an aligned table."""
    at = found.sweep.at
    out = [
        f"{found.factory} over {found.vectors:,} vectors, {found.memory_per_vector:.0f} bytes per vector in the index, "
        f"{found.disk_per_vector:.0f} on disk with the embeddings",
        f"{found.sweep.queries} queries, {found.threads} thread(s); * = on the frontier: nothing finds as much in less "
        "time",
        "",
        f"  {'probes':>7} {'ef_search':>9} {'k_factor':>8} {f'recall@{at}':>10} {'ms/query':>9} {'least to most':>17}",
    ]
    for point in found.points:
        settings = point.settings
        cells = ["-" if value is None else str(value) for value in (settings.probes, settings.ef_search)]
        spread = f"{point.fastest:.3f} to {point.slowest:.3f}"
        out.append(
            f"{'*' if point.frontier else ' '} {cells[0]:>7} {cells[1]:>9} {settings.k_factor or 1:>8} "
            f"{point.recall:>10.3f} {point.milliseconds:>9.3f} {spread:>17}"
        )
    out.append("")
    if found.cheapest is None:
        best = max(found.points, key=lambda point: point.recall)
        out.append(
            f"no setting reaches a recall of {found.sweep.target:g}; the most is {best.recall:.3f} with {_name(best)}. "
            "Less compression (SQ8, Flat) or a larger k_factor finds more"
        )
    else:
        point = found.cheapest
        out.append(
            f"cheapest with a recall of at least {found.sweep.target:g}: {_name(point)} "
            f"({point.recall:.3f}, {point.milliseconds:.3f} ms)"
        )
        out.append(f"to set it: {_override(point)}")
    return out


def _name(point: Point) -> str:
    return ", ".join(f"{name} {value}" for name, value in _set(point)) or "no settings"


def _override(point: Point) -> str:
    return " ".join(f"index.vectors.{name}={value}" for name, value in _set(point))


def _set(point: Point) -> list[tuple[str, int]]:
    settings = point.settings
    pairs = (("probes", settings.probes), ("ef_search", settings.ef_search), ("k_factor", settings.k_factor))
    return [(name, value) for name, value in pairs if value is not None]


def page(found: Frontier) -> str:
    """One self-contained HTML page: the plot, and the table below."""
    from html import escape

    from retro.analysis.svg import Chart, Line, render

    rest = sorted((p for p in found.points if not p.frontier), key=lambda p: p.milliseconds)
    frontier = sorted((p for p in found.points if p.frontier), key=lambda p: p.milliseconds)
    slowest = max(p.milliseconds for p in found.points)
    fastest = min(p.milliseconds for p in found.points)
    low, high = math.log10(fastest), math.log10(slowest)
    pad = max(0.05 * (high - low), 0.05)
    ticks = [
        (math.log10(value), f"{value:g}")
        for power in range(math.floor(low), math.ceil(high) + 1)
        for value in (10.0**power, 2 * 10.0**power, 5 * 10.0**power)
        if low - pad <= math.log10(value) <= high + pad
    ]
    chart = Chart(
        f"recall@{found.sweep.at} against time per query",
        "milliseconds per query",
        f"recall@{found.sweep.at}",
        [
            Line(
                "other settings",
                "off",
                [math.log10(p.milliseconds) for p in rest],
                [p.recall for p in rest],
                kind="points",
            ),
            Line("frontier", "retro", [math.log10(p.milliseconds) for p in frontier], [p.recall for p in frontier]),
        ],
        x_ticks=ticks,
        x_range=(low - pad, high + pad),
    )
    table = escape("\n".join(lines(found)))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>tune-index</title><style>'
        "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}svg{max-width:45em;font-size:11px}"
        ".grid path{stroke:#ddd}.axis{stroke:#666;fill:none}.retro .line{fill:none;stroke:#0a58ca;stroke-width:2}"
        ".retro .mark{fill:#0a58ca}.off .mark{fill:#999}pre{overflow-x:auto}</style></head><body>"
        f"<h1>{escape(found.factory)}, {found.vectors:,} vectors</h1><p>recall@{found.sweep.at} (up) against "
        "milliseconds per query (right, logarithmic). Blue: the frontier; grey: settings that another one beats.</p>"
        f"{render(chart, 'frontier')}<pre>{table}</pre></body></html>\n"
    )
