"""Tables as plain rows, and their rendering for a terminal. The HTML report shows the same rows."""

from __future__ import annotations

import shutil
import textwrap
import unicodedata

from retro.analysis.bootstrap import Estimate
from retro.analysis.cells import Row, Table, figure, left_out, negated, percentage, scaled
from retro.analysis.comparison import Comparison
from retro.analysis.perplexity import PerplexityComparison
from retro.analysis.qa_tables import all_qa_tables
from retro.analysis.questions import QuestionComparison
from retro.analysis.wording import duration, headline, supporting_sentences


def perplexity_table(result: PerplexityComparison) -> Table:
    """Bits per byte of every series over every subset, and the difference to the reference."""
    labels = result.labels()
    reference = result.main[0]
    rows = []
    for subset in result.subsets:
        group = f"{subset.title} ({subset.chunks:,} chunks, {subset.documents:,} documents)"
        for item in result.series:
            contrast = result.contrast(item.key, reference, subset.key)
            if contrast is None and len(result.main) == 1:  # one run: what the other modes cost against the main one
                mirrored = result.contrast(reference, item.key, subset.key)
                relative = _inverted(mirrored.relative) if mirrored else None
                gain = negated(mirrored.gain) if mirrored else None
            else:
                relative, gain = (contrast.relative, contrast.gain) if contrast else (None, None)
            rows.append(
                Row(
                    (
                        labels[item.key],
                        figure(result.score(item.key, subset.key)),
                        figure(gain, 4, signed=True) if gain else "",
                        percentage(relative) if relative else "",
                    ),
                    series=item.key,
                    estimate=relative,
                    group=group,
                )
            )
    against = labels[reference]
    return Table(
        f"Bits per byte, {result.name}",
        ("model", "bits per byte", f"{against} minus it", f"change against {against}"),
        tuple(rows),
        caption=(
            f"[low, high]: 95% interval, paired bootstrap over documents, {result.draws:,} draws. Lower bits per byte "
            f"is better: a negative change means that the row's model beats {against}."
            + left_out(result.left_out, "chunks")
        ),
        optional=(2,),
    )


def controls_table(result: PerplexityComparison) -> Table | None:
    """Within each run: its main mode against its own other modes, over all chunks; None if there are none."""
    labels = result.labels()
    rows = []
    for item in result.contrasts:
        same_run = item.candidate.rpartition("/")[0] == item.reference.rpartition("/")[0]
        if item.subset == "all" and same_run:
            cells = (
                f"{labels[item.candidate]} against {labels[item.reference]}",
                figure(item.gain, 4, signed=True),
                percentage(item.relative),
            )
            rows.append(Row(cells, item.reference, item.relative))
    if not rows:
        return None
    heads = ("comparison", "gain, bits per byte", "change")
    return Table("The same weights, other neighbors", heads, tuple(rows), optional=(1,))


def bucket_table(result: PerplexityComparison) -> Table | None:
    """Gain of every other run's main series by overlap bucket; None without r(C)."""
    if not result.buckets:
        return None
    labels = result.labels()
    pairs = main_pairs(result)
    several = len(pairs) > 1
    rows = []
    for subset in result.buckets:
        for candidate, reference in pairs:
            contrast = result.contrast(candidate, reference, subset.key)
            if contrast is None:
                continue
            cells = (
                subset.title,
                *((labels[candidate],) if several else ()),
                f"{subset.chunks:,}",
                figure(contrast.gain, 3, signed=True),
                percentage(contrast.relative),
            )
            rows.append(Row(cells, candidate, contrast.relative))
    heads = ("r(C)", *(("model",) if several else ()), "chunks", "gain, bits per byte", "change")
    return Table("Gain by overlap with retrieved text", heads, tuple(rows), text_columns=1 + several)


def main_pairs(result: PerplexityComparison) -> list[tuple[str, str]]:
    """(candidate, reference) of the comparison's main question."""
    if len(result.main) > 1:
        return [(key, result.main[0]) for key in result.main[1:]]
    run = result.main[0].rpartition("/")[0]
    return [(f"{run}/on", f"{run}/off")] if result.contrast(f"{run}/on", f"{run}/off") else []


def question_table(result: QuestionComparison) -> Table:
    """Exact match and F1 in percent, and the difference to the reference in percentage points."""
    labels = result.labels()
    reference = result.series[0].key
    rows = []
    for score in result.scores:
        contrast = next((c for c in result.contrasts if (c.candidate, c.reference) == (score.series, reference)), None)
        mirrored = next((c for c in result.contrasts if (c.candidate, c.reference) == (reference, score.series)), None)
        match, f1 = (contrast.exact_match, contrast.f1) if contrast else (None, None)
        if contrast is None and mirrored is not None:
            match, f1 = negated(mirrored.exact_match), negated(mirrored.f1)
        rows.append(
            Row(
                (
                    labels[score.series],
                    figure(scaled(score.exact_match), 1),
                    figure(scaled(score.f1), 1),
                    figure(scaled(match), 1, signed=True) if match else "",
                    figure(scaled(f1), 1, signed=True) if f1 else "",
                ),
                series=score.series,
            )
        )
    for name, values in result.controls.items():
        cells = (f"control: {name}", f"{100 * values['exact_match']:.1f}", f"{100 * values['f1']:.1f}", "", "")
        rows.append(Row(cells))
    against = labels[reference]
    heads = ("model", "exact match, %", "F1, %", f"EM minus {against}", f"F1 minus {against}")
    caption = (
        f"{result.questions:,} questions, 95% interval from a paired bootstrap over {result.units:,} {result.unit}. "
        "Higher is better; differences are in percentage points."
        + _recall(result)
        + left_out(result.left_out, "questions")
    )
    return Table(f"Question answering, {result.name}", heads, tuple(rows), caption=caption, optional=(4, 3))


def training_table(comparison: Comparison) -> Table:
    """Size, training time, speed and last validation of every run."""
    rows = []
    for run in comparison.runs:
        t = run.training
        rows.append(
            Row(
                (
                    run.title if run.title == run.name else f"{run.title} ({run.name})",
                    f"{run.parameters / 1e6:.2f} M" if run.parameters else "-",
                    f"{t.steps:,}" if t else "-",
                    f"{t.tokens / 1e6:.2f} M" if t else "-",
                    duration(t.elapsed_s) if t else "-",
                    f"{t.tokens_per_s:,.0f}" if t and t.tokens_per_s else "-",
                    f"{t.median_mfu:.1%}" if t and t.median_mfu is not None else "-",
                    f"{run.eval_tokens_per_s:,.0f}" if run.eval_tokens_per_s else "-",
                    f"{t.validation_loss:.3f}" if t and t.validation_loss is not None else "-",
                ),
            )
        )
    heads = (
        "run", "parameters", "steps", "tokens", "training time", "tokens/s, training", "MFU", "tokens/s, evaluation",
        "last validation loss",
    )  # fmt: skip
    return Table("Training", heads, tuple(rows), optional=(7, 3, 6, 1, 2))


def all_tables(comparison: Comparison) -> list[Table]:
    """The tables in the order of the report."""
    tables: list[Table] = []
    for result in comparison.perplexity:
        extra = [controls_table(result), bucket_table(result)]
        tables += [perplexity_table(result), *(t for t in extra if t is not None)]
    tables += [question_table(result) for result in comparison.questions]
    tables += all_qa_tables(comparison.qa)
    return [*tables, training_table(comparison)]


def render_text(comparison: Comparison, width: int | None = None) -> str:
    """The whole comparison for a terminal: headline, tables, notes. width: columns (default: the terminal's)."""
    width = width or min(120, shutil.get_terminal_size((100, 24)).columns)
    wrapped = textwrap.wrap(headline(comparison), width)
    lines = ["", *wrapped, ""]
    for sentence in supporting_sentences(comparison):
        lines += textwrap.wrap(sentence, width, initial_indent="  * ", subsequent_indent="    ")
    for table in all_tables(comparison):
        lines += ["", *_render_table(table, width)]
    if comparison.notes:
        lines += ["", "Notes"]
        notes = textwrap.TextWrapper(
            width, initial_indent="  * ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
        )
        for note in comparison.notes:
            lines += notes.wrap(note)
    return "\n".join(lines) + "\n"


def _render_table(table: Table, width: int) -> list[str]:
    widths = [
        max([_cells(head)] + [_cells(row.cells[column]) for row in table.rows])
        for column, head in enumerate(table.heads)
    ]
    shown = list(range(len(table.heads)))
    for column in table.optional:
        if sum(widths[c] + 2 for c in shown) > width:
            shown.remove(column)

    def line(cells: tuple[str, ...]) -> str:
        parts = []
        for column in shown:
            pad = " " * (widths[column] - _cells(cells[column]))
            parts.append(cells[column] + pad if column < table.text_columns else pad + cells[column])
        return ("  " + "  ".join(parts)).rstrip()

    rule = "  " + "-" * (sum(widths[c] + 2 for c in shown) - 2)
    lines = [table.title, line(table.heads), rule]
    group = ""
    for row in table.rows:
        if row.group and row.group != group:
            lines.append(f"  {row.group}")
            group = row.group
        lines.append(line(row.cells))
    if table.caption:
        lines += textwrap.wrap(table.caption, width, initial_indent="  ", subsequent_indent="  ")
    return lines


def _cells(text: str) -> int:
    """Columns that `text` takes on a terminal."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _recall(result: QuestionComparison) -> str:
    names = {"document": "the document asked about", "evidence": "the line that answers"}
    parts = []
    for what, shares in result.retrieval.items():
        rising = sorted(shares.items(), key=lambda item: int(item[0]))
        parts.append(f"{names[what]} {', '.join(f'{share:.0%} (k = {k})' for k, share in rising)}")
    return f" Among the first k neighbors: {'; '.join(parts)}." if parts else ""


def _inverted(relative: Estimate) -> Estimate:
    """Change of the reference against the candidate, from candidate / reference - 1."""
    turned = [None if v is None else 1 / (1 + v) - 1 for v in (relative.value, relative.low, relative.high)]
    return Estimate(turned[0], turned[2], turned[1])
