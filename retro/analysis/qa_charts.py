"""The charts of question answering: accuracy against popularity, passages, retrieval share and latency."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from retro.analysis.bootstrap import Estimate
from retro.analysis.qa import QaComparison
from retro.analysis.qa_policies import Adaptive, AdaptivePolicy
from retro.analysis.qa_series import QaSeries, arm_words
from retro.analysis.qa_wording import metric_words
from retro.analysis.svg import Chart, Line

#: So many lines can still be told apart.
_MANY = 6
_POLICY_ROLES = {"popularity": "x1", "confidence": "x2"}
# More bands than this hide each other.
_BANDS = 3


def qa_charts(result: QaComparison) -> list[Chart]:
    """All that the evaluations give figures for."""
    charts = [popularity_chart(result), passages_chart(result), cost_chart(result)]
    for item in result.adaptive:
        charts.append(share_chart(result, item))
        charts.append(adaptive_cost_chart(result, item))
    return [chart for chart in charts if chart is not None]


def popularity_chart(result: QaComparison) -> Chart | None:
    """Accuracy by popularity bin of every arm, of many without their controls; None without popularity."""
    bins = result.of_kind("popularity")
    if not bins:
        return None
    titles = [item.title for item in bins]
    lines = [
        _line(item.label, item.role, list(range(len(bins))), [result.score(item.key, b.key) for b in bins])
        for item in _without_controls(result.series)
    ]
    if len(lines) > _BANDS:
        lines = [dataclasses.replace(line, band=False) for line in lines]
    drawn = "Band: 95%" if len(lines) <= _BANDS else "Intervals, 95%, are among the numbers"
    step = max(1, round(len(bins) / 6))
    return Chart(
        f"{metric_words(result.primary).capitalize()} by popularity",
        "monthly page views of what is asked about",
        f"{metric_words(result.primary)}, %",
        lines,
        caption=f"{drawn}, bootstrap over {result.unit}. Questions per bin: "
        + ", ".join(f"{b.questions:,}" for b in bins)
        + "."
        + (" Controls are in the table." if len(lines) < len(result.series) else ""),
        x_ticks=[(i, _short(titles[i])) for i in range(0, len(bins), step)],
        x_range=(-0.3, len(bins) - 0.7),
        x_format=lambda value: titles[min(max(round(value), 0), len(titles) - 1)],
        y_format=_percent,
        x_name="page views",
    )


def _without_controls(series: Sequence[QaSeries]) -> Sequence[QaSeries]:
    """More than a few lines hide each other: then those of oracle, random and gate 0 stay away."""
    plain = [item for item in series if "/" not in item.arm]
    return plain if plain and len(series) > _MANY else series


def passages_chart(result: QaComparison) -> Chart | None:
    """Accuracy against the number of passages; None without evaluations that differ in it."""
    ks = sorted({k for by_k in result.sweeps.values() for k in by_k})
    if not ks:
        return None
    lines = []
    place = {k: i for i, k in enumerate(ks)}
    for item in result.series:
        by_k = result.sweeps.get(item.key)
        if by_k is not None:
            lines.append(_line(item.label, item.role, [place[k] for k in by_k], list(by_k.values())))
    return Chart(
        f"{metric_words(result.primary).capitalize()} by number of passages",
        "k: most passages of a question",
        f"{metric_words(result.primary)}, %",
        lines,
        caption=f"Band: 95%, bootstrap over {result.unit}.",
        x_ticks=[(i, str(k)) for i, k in enumerate(ks)],
        x_range=(-0.2, len(ks) - 0.8),
        x_format=lambda value: str(ks[min(max(round(value), 0), len(ks) - 1)]),
        y_format=_percent,
        x_name="k =",
        table=all(list(line.x) == list(lines[0].x) for line in lines),
    )


def cost_chart(result: QaComparison) -> Chart | None:
    """Accuracy of every arm against its time per question; None where fewer than two arms have one."""
    for name, label in (
        ("latency_ms", "milliseconds per question, asked alone (median)"),
        ("seconds", "seconds per question, in batches"),
    ):
        found = {c.series: getattr(c, name) for c in result.costs if getattr(c, name) is not None}
        if len(found) > 1:
            lines = [
                _line(item.label, item.role, [found[item.key]], [result.score(item.key)], kind="points")
                for item in result.series
                if item.key in found
            ]
            return Chart(
                f"{metric_words(result.primary).capitalize()} against time",
                label,
                f"{metric_words(result.primary)}, %",
                lines,
                caption=f"Whiskers: 95%, bootstrap over {result.unit}. Searching is not in the time.",
                x_range=_from_zero(list(found.values())),
                x_format=lambda value: f"{value:,.3g}",
                y_format=_percent,
                x_name="ms" if name == "latency_ms" else "s",
                table=False,
            )
    return None


def share_chart(result: QaComparison, item: Adaptive) -> Chart:
    """Accuracy against the share of questions that retrieve."""
    lines = [_curve(policy, "share") for policy in item.policies if policy.curve]
    lines += _fixed(item, {"closed": 0.0, "retrieval": 1.0})
    for policy in item.policies[:1]:
        if policy.oracle_share.value is not None and "oracle" in policy.accuracy:
            oracle = policy.accuracy["oracle"]
            lines.append(_line("oracle: the better of both", "x4", [policy.oracle_share.value], [oracle], "points"))
    for policy in item.policies:
        if policy.share.value is not None and "adaptive" in policy.accuracy:
            estimate = policy.accuracy["adaptive"]
            lines.append(
                _line(
                    f"thresholds by {policy.kind}, held out", _role(policy), [policy.share.value], [estimate], "points"
                )
            )
    return Chart(
        _title(result, item, "Adaptive retrieval: accuracy against share retrieved"),
        "share of questions that retrieve",
        f"{metric_words(item.metric)}, %",
        lines,
        caption="Lines: one threshold for all questions, moved from never to always, with nothing fitted. Points: "
        f"fitted thresholds on held-out questions, mean and central 95% of {item.splits:,} random splits.",
        x_ticks=[(i / 4, f"{25 * i}%") for i in range(5)],
        x_range=(-0.03, 1.03),
        x_format=lambda value: f"{value:.0%}",
        y_format=_percent,
        x_name="retrieved",
        table=False,
    )


def adaptive_cost_chart(result: QaComparison, item: Adaptive) -> Chart | None:
    """Accuracy against latency as the share changes; None where no time is known of every question."""
    for name, label in (
        ("latency_ms", "milliseconds per question, asked alone"),
        ("seconds", "seconds per question, in batches"),
    ):
        policies = [policy for policy in item.policies if name in policy.expenses]
        if not policies:
            continue
        spent = policies[0].expenses[name]
        lines = [_curve(policy, name) for policy in policies if policy.curve and all(name in p for p in policy.curve)]
        lines += _fixed(item, {"closed": spent.never, "retrieval": spent.always})
        for policy in policies:
            x, estimate = policy.expenses[name].adaptive, policy.accuracy["adaptive"]
            lines.append(_line(f"thresholds by {policy.kind}, held out", _role(policy), [x], [estimate], "points"))
        return Chart(
            _title(result, item, "Adaptive retrieval: accuracy against time"),
            label,
            f"{metric_words(item.metric)}, %",
            lines,
            caption="As beside it. Asking the model for its own confidence costs the closed-book answer first.",
            x_range=_from_zero([x for line in lines for x in line.x]),
            x_format=lambda value: f"{value:,.3g}",
            y_format=_percent,
            x_name="ms" if name == "latency_ms" else "s",
            table=False,
        )
    return None


def _fixed(item: Adaptive, places: dict[str, float]) -> list[Line]:
    accuracy = item.policies[0].accuracy if item.policies else {}
    names = {"closed": f"never: {arm_words(item.closed)}", "retrieval": f"always: {arm_words(item.retrieval)}"}
    roles = {"closed": "gpt", "retrieval": "on"}
    return [
        _line(names[name], roles[name], [x], [accuracy[name]], "points")
        for name, x in places.items()
        if name in accuracy
    ]


def _curve(policy: AdaptivePolicy, name: str) -> Line:
    x, y = [p[name] for p in policy.curve], [100 * p["accuracy"] for p in policy.curve]
    return Line(f"one threshold of {policy.kind}", _role(policy), x, y, markers=False)


def _role(policy: AdaptivePolicy) -> str:
    return _POLICY_ROLES.get(policy.kind, "x3")


def _title(result: QaComparison, item: Adaptive, title: str) -> str:
    return f"{title}, {item.run}: {arm_words(item.retrieval)}" if len(result.adaptive) > 1 else title


def _line(label: str, role: str, x: Sequence[float], estimates: Sequence[Estimate], kind: str = "line") -> Line:
    def percent(value: float | None) -> float | None:
        return None if value is None else 100 * value

    return Line(
        label,
        role,
        list(x),
        [percent(e.value) for e in estimates],
        [percent(e.low) for e in estimates],
        [percent(e.high) for e in estimates],
        kind=kind,
    )


def _from_zero(values: Sequence[float]) -> tuple[float, float]:
    return 0.0, 1.08 * max([*values, 1e-9])


def _percent(value: float) -> str:
    return f"{value:.1f}%"


def _short(title: str) -> str:
    """'1,000 to 3,000' -> '1k'."""
    first = title.removeprefix("below ").split(" ")[0].replace(",", "")
    number = int(first)
    short = f"{number / 1000:g}k" if number >= 1000 else str(number)
    return f"<{short}" if title.startswith("below ") else short
