"""The figures of adaptive retrieval as lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_EXPENSES = {
    "seconds": ("seconds per question", "{:.4f}"),
    "latency_ms": ("latency, ms", "{:.1f}"),
    "cost": ("cost per 1,000 questions", "{:.4g}"),
    "prompt_tokens": ("prompt tokens", "{:.1f}"),
    "encoder_tokens": ("encoder tokens", "{:.1f}"),
    "new_tokens": ("new tokens", "{:.1f}"),
}
#: Policies that retrieve nearly never or nearly always are one of the fixed arms.
_FIXED = 0.02


def describe_comparison(figures: Mapping[str, Any], metric: str, settings: Mapping[str, Any], unit: str) -> list[str]:
    """Lines about one entry of `comparisons`; unit: of costs."""
    arms, plan = figures["arms"], settings["plan"]
    left_out = f", {figures['left_out']:,} left out for want of an answer" if figures["left_out"] else ""
    lines = [
        f"{arms['retrieval']} where {arms['closed']} needs it: {figures['questions']:,} questions{left_out}",
        f"  {metric} on held-out questions, {plan['splits']} random splits, {1 - plan['dev_share']:.0%} of each "
        "relation tested (mean ± sd; central 95% of the splits)",
    ]
    first = next(iter(figures["policies"].values()))
    rows = [
        (f"never ({arms['closed']})", first["accuracy"]["closed"], 0.0),
        (f"always ({arms['retrieval']})", first["accuracy"]["retrieval"], 1.0),
        *(
            (kind, policy["accuracy"]["adaptive"], policy["share_retrieved"]["mean"])
            for kind, policy in figures["policies"].items()
        ),
        ("oracle", first["accuracy"]["oracle"], first["oracle_share"]["mean"]),
    ]
    width = max(len(name) for name, *_ in rows)
    for name, s, share in rows:
        figures_of_it = f"{s['mean']:.4f} ± {s['sd']:.4f} [{s['low']:.4f}, {s['high']:.4f}]"
        lines.append(f"    {name:<{width}}  {figures_of_it}  retrieves for {share:.1%}")
    for kind, policy in figures["policies"].items():
        lines += _describe_policy(kind, policy, arms, unit)
    return lines


def _describe_policy(kind: str, policy: Mapping[str, Any], arms: Mapping[str, str], unit: str) -> list[str]:
    gain = policy["gain"]["by_question"]
    interval = f" [{gain['low']:+.4f}, {gain['high']:+.4f}]" if gain["low"] is not None else ""
    over = f"never ({arms['closed']})" if policy["better_fixed"] == "closed" else f"always ({arms['retrieval']})"
    lines = [f"  {kind}: {gain['value']:+.4f}{interval} over {over}, the better fixed arm (bootstrap)"]
    share = policy["share_retrieved"]["mean"]
    if share < _FIXED or share > 1 - _FIXED:
        lines.append(f"    it {'never' if share < _FIXED else 'always'} retrieves, but for {min(share, 1 - share):.1%}")
    rule = policy["rule"]
    if kind == "popularity":
        shown = ", ".join(f"{name or '(none)'} {_threshold(t)}" for name, t in rule["thresholds"].items())
        lines.append(f"    retrieves below a log popularity of: {shown}; others {_threshold(rule['default'])}")
    else:
        lines.append(
            f"    retrieves below a confidence of {_threshold(rule['threshold'])} ({rule['measure']} log-probability "
            f"of the first {rule['tokens']} tokens)"
            + ("" if isinstance(rule["threshold"], str) else f"; {arms['closed']} is always asked first")
        )
    for name, expense in policy["expenses"].items():
        label, form = _EXPENSES[name]
        values = [expense["never"], expense["adaptive"]["mean"], expense["always"]]
        if name == "cost":
            label, values = f"{label}, {unit}", [1000 * value for value in values]
        never, adaptive, always = (form.format(value) for value in values)
        saved = expense["saved"]
        spent = "" if expense["always"] == 0 else f"; saves {saved['mean']:.1%} ± {saved['sd']:.1%} of always"
        lines.append(f"    {label}: {adaptive} (never {never}, always {always}{spent})")
    return lines


def _threshold(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.2f}"
