"""The tables of question answering in arms."""

from __future__ import annotations

from collections.abc import Sequence

from retro.analysis.bootstrap import Estimate
from retro.analysis.cells import Row, Table, figure, left_out, scaled
from retro.analysis.mcnemar import p_text
from retro.analysis.qa import QaComparison, QaContrast
from retro.analysis.qa_retrieval_tables import (
    adaptive_table,
    cost_table,
    errors_table,
    helps_table,
    recall_table,
    sweep_table,
)
from retro.analysis.qa_subsets import QaSubset
from retro.analysis.qa_wording import counted, metric_words, task_words

_BASELINE_WORDS = {
    "commonest_answer": "commonest answer",
    "commonest_of_group": "commonest answer of the group",
    "commonest_of_relation": "commonest answer of the relation",
}
_DETAILED = {"seen": "Seen in training or not", "group": "By group"}
# More parts than this are shown without intervals.
_FEW = 4
_KIND_WORDS = {"relation": "relation", "popularity": "popularity, views per month", "group": "part of the task"}


def qa_tables(result: QaComparison) -> list[Table]:
    """All of one comparison, in the order of the report."""
    tables = [arms_table(result), pairs_table(result)]
    for kind in ("seen", "group", "relation", "popularity"):
        few = len(result.of_kind(kind)) <= _FEW
        tables.append(detailed_table(result, kind) if few and kind in _DETAILED else parts_table(result, kind))
    tables += [recall_table(result), errors_table(result), helps_table(result), sweep_table(result), cost_table(result)]
    tables += [adaptive_table(result, item) for item in result.adaptive]
    return [table for table in tables if table is not None]


def arms_table(result: QaComparison) -> Table:
    """Every arm: all metrics, and the difference to the reference in the primary one."""
    rows = []
    for item in result.series:
        contrast = result.contrast(item.key, result.reference.key)
        rows.append(
            Row(
                (
                    item.label,
                    *(figure(scaled(result.score(item.key, "all", metric)), 1) for metric in result.metrics),
                    *_difference(contrast),
                ),
                series=item.key,
                estimate=scaled(contrast.difference) if contrast else None,
            )
        )
    for name, values in result.baselines.items():
        cells = [f"{100 * values[metric]:.1f}" if metric in values else "-" for metric in result.metrics]
        rows.append(Row((f"without reading: {_BASELINE_WORDS.get(name, name)}", *cells, "", "")))
    heads = ("arm", *(f"{metric_words(m)}, %" for m in result.metrics), f"minus {result.reference.label}", "McNemar p")
    several = len(result.metrics)
    known = next((s for s in result.of_kind("seen") if s.questions == result.questions), None)
    return Table(
        f"Arms side by side: {task_words(result)}",
        heads,
        tuple(rows),
        caption=(
            f"{result.questions:,} questions; [low, high]: 95% interval, paired bootstrap over {result.units:,} "
            f"{result.unit}, {result.draws:,} draws. Differences are percentage points of "
            f"{metric_words(result.primary)}; p: McNemar's exact test, two-sided, over questions."
            + (f" All are {known.title[0].lower()}{known.title[1:]}." if known is not None else "")
            + left_out(result.left_out, "questions")
        ),
        optional=(*range(several, 1, -1), several + 2),
    )


def pairs_table(result: QaComparison) -> Table | None:
    """Every pair of arms; None with one arm, or with two, whose difference stands in the first table."""
    if len(result.series) < 3:
        return None
    labels = result.labels()
    rows = []
    for item in (c for c in result.contrasts if c.subset == "all"):
        rows.append(
            Row(
                (
                    f"{labels[item.candidate]} minus {labels[item.reference]}",
                    figure(scaled(item.difference), 1, signed=True),
                    f"{item.only_candidate:,}",
                    f"{item.only_reference:,}",
                    p_text(item.p),
                    p_text(item.p_holm),
                ),
                series=item.candidate,
                estimate=scaled(item.difference),
            )
        )
    heads = (
        "difference",
        f"{metric_words(result.primary)}, points",
        "only first right",
        "only second",
        "McNemar p",
        "Holm",
    )
    return Table(
        f"Every difference: {task_words(result)}",
        heads,
        tuple(rows),
        caption="McNemar's exact test looks at the questions that only one of two arms got right. Holm: p corrected "
        "for all the pairs of this table.",
        optional=(3, 2, 5),
    )


def detailed_table(result: QaComparison, kind: str) -> Table | None:
    """Every arm within every part, with intervals and tests; None where there are no parts of the kind."""
    rows = []
    parts = result.of_kind(kind)
    for subset in parts if len(parts) > 1 else ():
        for item in result.series:
            contrast = result.contrast(item.key, result.reference.key, subset.key)
            score = figure(scaled(result.score(item.key, subset.key)), 1)
            estimate = scaled(contrast.difference) if contrast else None
            group = f"{subset.title} ({counted(subset.questions, 'questions')}, {counted(subset.units, result.unit)})"
            rows.append(Row((item.label, score, *_difference(contrast)), item.key, estimate, group))
    if not rows:
        return None
    heads = ("arm", f"{metric_words(result.primary)}, %", f"minus {result.reference.label}", "McNemar p")
    return Table(f"{_DETAILED[kind]}: {task_words(result)}", heads, tuple(rows), optional=(3,))


def parts_table(result: QaComparison, kind: str) -> Table | None:
    """One row per group, relation or popularity bin, one column per arm; None where there is one part only."""
    subsets = result.of_kind(kind)
    if not subsets:
        return None
    rows = [
        Row((subset.title, f"{subset.questions:,}", *(_cell(result, item.key, subset) for item in result.series)))
        for subset in subsets
    ]
    return Table(
        f"{metric_words(result.primary).capitalize()} by {kind}, %: {task_words(result)}",
        (_KIND_WORDS[kind], "questions", *(item.label for item in result.series)),
        tuple(rows),
        caption=f"* : the 95% interval of the difference to {result.reference.label} excludes zero (paired bootstrap "
        f"over {result.unit}, not corrected for the number of parts).",
        optional=tuple(range(len(result.series) + 1, 3, -1)),
    )


def _cell(result: QaComparison, key: str, subset: QaSubset) -> str:
    text = figure(scaled(Estimate(result.score(key, subset.key).value)), 1)
    contrast = result.contrast(key, result.reference.key, subset.key)
    return f"* {text}" if contrast is not None and contrast.difference.excludes_zero else text


def _difference(contrast: QaContrast | None) -> tuple[str, str]:
    if contrast is None:
        return "", ""
    return figure(scaled(contrast.difference), 1, signed=True), p_text(contrast.p)


def all_qa_tables(results: Sequence[QaComparison]) -> list[Table]:
    """The tables of several comparisons."""
    return [table for result in results for table in qa_tables(result)]
