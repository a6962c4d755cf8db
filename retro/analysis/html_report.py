"""The report as one HTML file: no network, no library, readable without JavaScript and on a phone."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from retro.analysis.cells import Table, percent
from retro.analysis.charts import bucket_chart, leakage_charts, position_charts, training_charts
from retro.analysis.comparison import Comparison, text_fingerprints
from retro.analysis.perplexity import PerplexityComparison
from retro.analysis.qa_charts import qa_charts
from retro.analysis.qa_tables import qa_tables
from retro.analysis.qa_wording import qa_tiles, task_words
from retro.analysis.reader import clean, read_samples, render_reader, safe
from retro.analysis.runs import Run
from retro.analysis.series import role_of
from retro.analysis.svg import Chart, render, swatch
from retro.analysis.tables import (
    bucket_table,
    controls_table,
    perplexity_table,
    question_table,
    training_table,
)
from retro.analysis.wording import headline, main_contrast, supporting_sentences


def render_report(runs: Sequence[Run], comparison: Comparison, title: str | None = None) -> str:
    """The whole page. The same runs and comparison give the same characters."""
    names = " and ".join(run.name for run in runs) if len(runs) < 3 else f"{len(runs)} runs"
    page = _Page(runs, comparison)
    sections = [section for section in page.sections() if section is not None]
    navigation = "".join(f'<a href="#{ident}">{safe(name)}</a>' for ident, name, _ in sections)
    body = "".join(f'<section id="{ident}"><h2>{safe(name)}</h2>{html}</section>' for ident, name, html in sections)
    title = title or f"What retrieval bought: {names}"
    supporting = "".join(f"<li>{_typeset(sentence)}</li>" for sentence in supporting_sentences(comparison))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{safe(title)}</title>\n<style>\n{_template('report.css')}</style>\n</head>\n<body>\n<main>\n"
        f'<header><p class="overline">{safe(title)}</p><h1>{_typeset(headline(comparison))}</h1>'
        f"{page.tiles()}"
        + (f'<ul class="supporting">{supporting}</ul>' if supporting else "")
        + f"{page.notes()}<nav>{navigation}</nav></header>\n{body}\n</main>\n"
        f'<div id="tip" hidden></div>\n<script>\n{_template("report.js")}</script>\n</body>\n</html>\n'
    )


class _Page:
    def __init__(self, runs: Sequence[Run], comparison: Comparison) -> None:
        self.runs, self.comparison = runs, comparison
        self.charts = 0
        every = [item for p in comparison.perplexity for item in p.series]
        every += [item for q in comparison.questions for item in q.series]
        self.roles = {item.key: item.role for item in every}
        self.roles |= {item.key: item.role for q in comparison.qa for item in q.series}

    def sections(self) -> list[tuple[str, str, str] | None]:
        comparison = self.comparison
        main = comparison.main_perplexity
        tables = [self.table(perplexity_table(result)) for result in comparison.perplexity]
        tables += [self.table(t) for r in comparison.perplexity if (t := controls_table(r)) is not None]
        tables += [self.table(question_table(result)) for result in comparison.questions]
        curves = training_charts(self.runs)
        training = self.charts_html(curves) + self.speed() + self.table(training_table(comparison))
        if curves:
            training += (
                '<p class="quiet">Thin lines: training loss, averaged for the eye; thick: validation. Time counts '
                "training only, on the machine it ran on; validation and checkpoints are excluded.</p>"
            )
        return [
            *self.questions(),
            ("evaluations", "Evaluations", "".join(tables)) if tables else None,
            ("training", "Training", training),
            self.leakage(main) if main is not None else None,
            self.positions(main) if main is not None else None,
            self.reader(main) if main is not None else None,
            ("reproduce", "How to reproduce", self.reproduce()),
        ]

    def tiles(self) -> str:
        """The four figures that people look for first; a tile without a figure is left out."""
        result, contrast = self.comparison.main_perplexity, main_contrast(self.comparison)
        tiles: list[tuple[str, str, str]] = []
        if result is None and self.comparison.qa:
            tiles += qa_tiles(self.comparison.qa[0])
        if result is not None and contrast is not None:
            for subset, name in (("all", "bits per byte, all chunks"), ("low_overlap", "bits per byte, r(C) ≤ 0.5")):
                found = result.contrast(contrast.candidate, contrast.reference, subset)
                if found is not None and found.relative.value is not None:
                    e = found.relative
                    ends = f"{percent(e.low)} to {percent(e.high)}" if e.low is not None and e.high is not None else ""
                    tiles.append((percent(e.value or 0.0), name, ends))
            run = contrast.candidate.rpartition("/")[0]
            share = next((s.share for s in result.shuffled if s.run == run), None)
            if share is not None and share.value is not None:
                ends = (
                    f"{share.low:.0%} to {share.high:.0%}" if share.low is not None and share.high is not None else ""
                )
                tiles.append((f"{share.value:.0%}", "of the gain lost with shuffled neighbors", ends))
        cost = next((t for t in self.comparison.training if t.step_cost is not None), None)
        if cost is not None:
            reference = self.comparison.run(cost.reference).title
            tiles.append((f"{cost.step_cost:.2f}×", f"training time per token, against {reference}", ""))
        if not tiles:
            return ""
        cells = "".join(
            f'<div class="tile"><b>{_typeset(value)}</b><span>{_typeset(name)}</span><i>{_typeset(ends)}</i></div>'
            for value, name, ends in tiles
        )
        return f'<div class="tiles">{cells}</div>'

    def notes(self) -> str:
        if not self.comparison.notes:
            return ""
        items = "".join(f"<li>{_commands(note)}</li>" for note in self.comparison.notes)
        return f'<aside class="notes"><h2>Missing or left out</h2><ul>{items}</ul></aside>'

    def questions(self) -> list[tuple[str, str, str]]:
        """A section for each task that was answered in arms."""
        sections = []
        for number, result in enumerate(self.comparison.qa, start=1):
            first, *others = qa_tables(result)
            html = self.table(first) + self.charts_html(qa_charts(result))
            html += "".join(self.table(table) for table in others)
            sections.append((f"qa-{number}", f"Question answering: {task_words(result)}", html))
        return sections

    def leakage(self, result: PerplexityComparison) -> tuple[str, str, str] | None:
        charts = leakage_charts(result)
        if not charts:
            return None
        html = self.charts_html(charts)
        bucket, table = bucket_chart(result), bucket_table(result)
        if bucket is not None and table is not None:
            html += f'<div class="charts">{self.chart(bucket)}{self.table(table, draw=False)}</div>'
        return "leakage", "Leakage: is it copying?", html

    def positions(self, result: PerplexityComparison) -> tuple[str, str, str] | None:
        charts = position_charts(result)
        return ("positions", "Where in the chunk", self.charts_html(charts)) if charts else None

    def reader(self, result: PerplexityComparison) -> tuple[str, str, str] | None:
        found = read_samples(self.runs, result.name)
        if found is None or not found[1]:
            return None
        run, samples = found
        intro = (
            "<p>Test chunks, the text before each, and the neighbors that the model read while predicting it "
            "(retrieved with the preceding chunk). The colour of a token is what retrieval saves on it; the samples "
            "are the evaluation's choice, not the report's. Underlined in a neighbor: runs of four words or more that "
            "the test chunk has too.</p>"
        )
        return "reader", "Reader", intro + render_reader(self.runs, run, samples)

    def speed(self) -> str:
        rates = [(run, run.training.tokens_per_s) for run in self.comparison.runs if run.training]
        known = [(run, rate) for run, rate in rates if rate]
        if not known:
            return ""
        top = max(rate for _, rate in known)
        bars = []
        for summary, rate in known:
            role = role_of(self.runs, next(r for r in self.runs if r.name == summary.name))
            bars.append(
                f'<div class="speed-row"><span>{safe(summary.title)}</span>'
                f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><rect class="bar {role}" '
                f'width="{100 * rate / top:.1f}" height="10"/></svg><b>{rate:,.0f}</b></div>'
            )
        return f'<div class="card speed"><h3>Training throughput, tokens per second</h3>{"".join(bars)}</div>'

    def charts_html(self, charts: Sequence[Chart]) -> str:
        return f'<div class="charts">{"".join(self.chart(chart) for chart in charts)}</div>' if charts else ""

    def chart(self, chart: Chart) -> str:
        self.charts += 1
        legend = "".join(f"<li>{swatch(line.role, line.kind)}{safe(line.label)}</li>" for line in chart.lines)
        numbers = _numbers(chart) if chart.table else ""
        caption = f'<p class="quiet">{safe(chart.caption)}</p>' if chart.caption else ""
        return (
            f'<figure class="card"><figcaption><h3>{safe(chart.title)}</h3><ul class="legend">{legend}</ul>'
            f'<p class="unit">{safe(chart.y_label)}</p></figcaption>{render(chart, f"chart-{self.charts}")}'
            f"{caption}{numbers}</figure>"
        )

    def table(self, table: Table, draw: bool = True) -> str:
        heads = "".join(
            f'<th scope="col"{"" if i < table.text_columns else " class=number"}>{safe(head)}</th>'
            for i, head in enumerate(table.heads)
        )
        drawn = draw and any(row.estimate is not None for row in table.rows)
        drawn_values = [
            v for r in table.rows if r.estimate for v in (r.estimate.value, r.estimate.low, r.estimate.high) if v
        ]
        span_drawn = (min([0.0, *drawn_values]), max([0.0, *drawn_values]))
        if drawn:
            heads += '<th scope="col" class="drawing">change, drawn</th>'
        rows, group = [], ""
        for row in table.rows:
            if row.group and row.group != group:
                group = row.group
                span = len(table.heads) + drawn
                rows.append(
                    f'<tr class="group"><th colspan="{span}" scope="colgroup"><span>{safe(group)}</span></th></tr>'
                )
            role = self.roles.get(row.series or "", "")
            cells = []
            for i, cell in enumerate(row.cells):
                if i == 0:
                    dot = f'<span class="dot {role}"></span>' if role else ""
                    cells.append(f'<th scope="row">{dot}{safe(cell)}</th>')
                else:
                    cells.append(f"<td{'' if i < table.text_columns else ' class=number'}>{_figure_cell(cell)}</td>")
            if drawn:
                cells.append(f'<td class="drawing">{_whisker(row, role, span_drawn)}</td>')
            rows.append(f"<tr>{''.join(cells)}</tr>")
        caption = f'<p class="quiet">{safe(table.caption)}</p>' if table.caption else ""
        return (
            f'<div class="card"><h3>{safe(table.title)}</h3><div class="scroll" tabindex="0"><table><thead><tr>{heads}'
            f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{caption}</div>"
        )

    def reproduce(self) -> str:
        parts = [
            '<div class="card"><h3>Commands</h3><pre class="scroll" tabindex="0">'
            + safe(self._commands())
            + "</pre></div>"
        ]
        if self.comparison.config_differences:
            differences = self.comparison.config_differences
            parts.append(self.across("In what the configurations differ", differences))
        environment = _union({run.name: dict(_flat(run.environment)) for run in self.runs if run.environment})
        if environment:
            parts.append(self.across("Versions and hardware", environment, same=True))
        prints = _union({run.name: _all_fingerprints(run) for run in self.runs})
        if prints:
            parts.append(self.across("Fingerprints", prints, same=True))
        for run in self.runs:
            if run.config_text:
                parts.append(
                    f'<details class="card"><summary>Configuration of {safe(run.name)}</summary>'
                    f'<pre class="scroll" tabindex="0">{safe(run.config_text)}</pre></details>'
                )
        return "".join(parts)

    def _commands(self) -> str:
        lines = []
        for run in self.runs:
            if run.config_text:
                lines.append(f"retro train {run.path}/config.yaml")
        for run in self.runs:
            for name, evaluation in run.evaluations.items():
                split = evaluation.results.get("split")
                config = evaluation.task if re.fullmatch(r"\w+", evaluation.task) else "..."
                extra = f" split={split}" if isinstance(split, str) and evaluation.task == "perplexity" else ""
                lines.append(f"retro eval configs/eval/{config}.yaml checkpoint={run.path}{extra}  # eval/{name}")
        lines.append(f"retro report {' '.join(str(run.path) for run in self.runs)}")
        return "\n".join(lines)

    def across(self, title: str, values: dict[str, dict[str, Any]], same: bool = False) -> str:
        """A table of field x run; with `same`, a value that all runs share is written once."""
        names = [run.name for run in self.runs if any(run.name in row for row in values.values())]
        heads = "".join(f'<th scope="col">{safe(name)}</th>' for name in names)
        rows = []
        for field, by_run in values.items():
            texts = [_value(by_run.get(name)) for name in names]
            if same and len(names) > 1 and len(set(texts)) == 1:
                cells = f'<td colspan="{len(names)}">{safe(texts[0])}</td>'
            else:
                cells = "".join(f"<td>{safe(text)}</td>" for text in texts)
            rows.append(f'<tr><th scope="row">{safe(field)}</th>{cells}</tr>')
        return (
            f'<details class="card"{" open" if len(rows) <= 12 else ""}><summary>{safe(title)}</summary>'
            '<div class="scroll" tabindex="0"><table class="plain"><thead><tr><th scope="col">field</th>'
            f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></details>"
        )


def _numbers(chart: Chart) -> str:
    """The chart's figures as a table, folded away."""
    heads = "".join(f'<th scope="col" class="number">{safe(line.label)}</th>' for line in chart.lines)
    rows = []
    first = chart.lines[0]
    for i, x in enumerate(first.x):
        cells = []
        for line in chart.lines:
            y = line.y[i] if i < len(line.y) else None
            low = line.low[i] if line.low is not None else None
            high = line.high[i] if line.high is not None else None
            text = chart.y_format(y) if y is not None else "-"
            if y is not None and low is not None and high is not None:
                text += f" [{chart.y_format(low)}, {chart.y_format(high)}]"
            cells.append(f'<td class="number">{_figure_cell(text)}</td>')
        rows.append(f'<tr><th scope="row">{safe(chart.x_format(x))}</th>{"".join(cells)}</tr>')
    return (
        '<details class="numbers"><summary>Numbers</summary><div class="scroll" tabindex="0"><table><thead><tr>'
        f'<th scope="col">{safe(chart.x_label)}</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        "</details>"
    )


def _whisker(row: Any, role: str, span: tuple[float, float]) -> str:
    """The estimate and its interval on an axis over `span`, which holds zero."""
    e = row.estimate
    if e is None or e.value is None:
        return ""
    width = span[1] - span[0] or 1.0

    def at(value: float) -> str:
        return f"{6 + 108 * (value - span[0]) / width:.1f}"

    whisker = f'<path class="whisker" d="M{at(e.low)} 8H{at(e.high)}"/>' if e.has_interval else ""
    return (
        '<svg class="interval" viewBox="0 0 120 16" width="120" height="16" aria-hidden="true"><path class="zero" '
        f'd="M{at(0.0)} 0V16"/><g class="points {role}">{whisker}<circle cx="{at(e.value)}" cy="8" r="3.5"/></g></svg>'
    )


def _figure_cell(text: str) -> str:
    """A figure with its interval set back."""
    match = re.fullmatch(r"(\S+) (\[.*\])", text)
    if match is None:
        return _typeset(text)
    return f'{_typeset(match[1])} <span class="interval-text">{_typeset(match[2])}</span>'


def _typeset(text: str) -> str:
    """Escaped, with a true minus before numbers and intervals that do not break."""
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", clean(text))
    text = text.replace(" ≤ ", "\u00a0≤\u00a0")
    text = re.sub(r"\[[^\]]{0,40}\]", lambda m: m.group().replace(" ", "\u00a0"), text)
    return safe(text)


def _commands(note: str) -> str:
    """A note with the commands in it set as code."""
    return re.sub(r"(retro (?:eval|train|report)(?: [\w./=-]+)*)", r"<code>\1</code>", safe(note))


def _flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [pair for key in sorted(value) for pair in _flat(value[key], f"{name}.{key}" if name else str(key))]
    return [(name, value)]


def _all_fingerprints(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = {f"release: {name}": value for name, value in text_fingerprints(run.release).items()}
    for name, evaluation in run.evaluations.items():
        if evaluation.results.get("checkpoint"):
            found[f"{name}: checkpoint"] = evaluation.results["checkpoint"]
        if evaluation.results.get("checkpoint_fingerprint"):
            found[f"{name}: checkpoint fingerprint"] = evaluation.results["checkpoint_fingerprint"]
    return found


def _union(by_run: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """field -> run -> value, fields in the order in which they first appear."""
    fields: dict[str, dict[str, Any]] = {}
    for name, values in by_run.items():
        for field, value in values.items():
            fields.setdefault(field, {})[name] = value
    return fields


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _template(name: str) -> str:
    return resources.files("retro.analysis").joinpath("templates", name).read_text(encoding="utf-8")
