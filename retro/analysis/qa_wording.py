"""Sentences about question answering. They say who is better only where the interval excludes zero."""

from __future__ import annotations

from retro.analysis.bootstrap import Estimate
from retro.analysis.mcnemar import p_text
from retro.analysis.qa import QaComparison, QaContrast
from retro.analysis.qa_series import QaSeries, reads_retrieved

_METRIC_WORDS = {
    "exact_match": "exact match",
    "exact_match_nq": "exact match (NQ)",
    "exact_match_literal": "exact match (literal)",
    "f1": "F1",
    "f1_literal": "F1 (literal)",
    "substring": "substring",
    "substring_strict": "substring (strict)",
    "regex": "regex match",
}

# Of the test, where a sentence says who is better.
LEVEL = 0.05


def metric_words(metric: str) -> str:
    """'exact_match' -> 'exact match'."""
    return _METRIC_WORDS.get(metric, metric.replace("_", " "))


def task_words(result: QaComparison) -> str:
    """Task and split for headings."""
    return f"{result.task}, {result.split}"


def counted(number: int, what: str) -> str:
    """'1 question', '1,200 questions'."""
    return f"{number:,} {what.removesuffix('s') if number == 1 else what}"


def points(estimate: Estimate) -> str:
    """'+5.2 points [95% CI 3.1, 7.3]' of a difference in 0..1."""
    if estimate.value is None:
        return "nothing to compare"
    text = f"{100 * estimate.value:+.1f} points"
    if estimate.low is None or estimate.high is None:
        return f"{text} (too few documents for an interval)"
    return f"{text} [95% CI {100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"


def qa_headline(result: QaComparison) -> str:
    """The one sentence: the main arm against the reference."""
    metric, where = metric_words(result.primary), f"{counted(result.questions, 'questions')} of {task_words(result)}"
    if any(s.key == "seen=false" and s.questions == result.questions for s in result.subsets):
        where += " (documents never trained on)"
    reference = result.reference
    candidate = main_candidate(result)
    score = result.score(reference.key).value
    if candidate is None:
        return f"{reference.label}: {100 * (score or 0.0):.1f}% {metric} over {where}."
    contrast = result.contrast(candidate.key, reference.key)
    assert contrast is not None
    return (
        f"{candidate.label} {100 * (result.score(candidate.key).value or 0.0):.1f}% vs {reference.label} "
        f"{100 * (score or 0.0):.1f}% {metric} over {where}: {points(contrast.difference)}{_verdict(result, contrast)}."
    )


def main_candidate(result: QaComparison) -> QaSeries | None:
    """The arm of the headline: the first that reads retrieved passages in its encoder, else the first that reads any,
    else the first other one. Not the best one: choosing that by its score would flatter it."""
    others = result.series[1:]
    orders = (
        [s for s in others if reads_retrieved(s.arm) and s.arm.startswith("retro")],
        [s for s in others if reads_retrieved(s.arm)],
        others,
    )
    return next((order[0] for order in orders if order), None)


def qa_tiles(result: QaComparison) -> list[tuple[str, str, str]]:
    """(figure, what it is, interval) of what people look for first."""
    candidate, reference, tiles = main_candidate(result), result.reference, []
    random = next((s for s in result.series if s.arm.endswith("/random")), None)
    wanted = [(candidate, "all", ""), (candidate, "seen=false", ", never trained on"), (random, "all", "")]
    for item, subset, where in wanted:
        contrast = result.contrast(item.key, reference.key, subset) if item is not None else None
        if item is not None and contrast is not None and contrast.difference.value is not None:
            e = contrast.difference
            ends = f"{100 * e.low:+.1f} to {100 * e.high:+.1f}" if e.low is not None and e.high is not None else ""
            name = f"points of {metric_words(result.primary)}, {item.label} minus {reference.label}{where}"
            tiles.append((f"{100 * contrast.difference.value:+.1f}", name, ends))
    for errors in result.retrieval_errors:
        if candidate is not None and errors.series == candidate.key and errors.given.value is not None:
            tiles.append((f"{errors.given.value:.0%}", "of questions have an answer in the passages read", ""))
    return tiles


def qa_sentences(result: QaComparison) -> list[str]:
    """What belongs beside the headline: documents never trained on, the controls, RAG against RETRO++, the policy."""
    candidate, sentences = main_candidate(result), []
    labels = result.labels()
    unseen = next((s for s in result.of_kind("seen") if s.key == "seen=false"), None)
    if unseen is not None and unseen.questions < result.questions:
        for item in result.series[1:]:
            contrast = result.contrast(item.key, result.reference.key, unseen.key)
            if reads_retrieved(item.arm) and contrast is not None:
                sentences.append(
                    f"{unseen.questions:,} questions about documents that were never trained on: {item.label} minus "
                    f"{result.reference.label} {points(contrast.difference)}{_verdict(result, contrast)}."
                )
    for item in result.series:
        if item.arm.endswith("/random"):
            contrast = result.contrast(item.key, result.reference.key)
            if contrast is not None:
                found = f"{item.label} minus {result.reference.label} {points(contrast.difference)}"
                sentences.append(f"Control: {found}{_verdict(result, contrast)}.")
    rag = next((s for s in result.series if s.arm == "rag"), None)
    both = next((s for s in result.series if s.arm == "retro++"), None)
    if rag is not None and both is not None:
        first, second = (rag, both) if result.series.index(rag) < result.series.index(both) else (both, rag)
        contrast = result.contrast(second.key, first.key)
        if contrast is not None:
            sentences.append(
                f"{second.label} minus {first.label}: {points(contrast.difference)}{_verdict(result, contrast)}."
            )
    errors = next((e for e in result.retrieval_errors if candidate is not None and e.series == candidate.key), None)
    if errors is not None and errors.wrong_without.value is not None and errors.given.value is not None:
        sentences.append(
            f"{labels[errors.series]}: {errors.given.value:.0%} of the questions have an answer in the passages it is "
            f"given, and {errors.wrong_without.value:.0%} of its wrong answers are to questions that have none there."
        )
    for pair in result.adaptive:
        for policy in pair.policies:
            adaptive, share = policy.accuracy.get("adaptive"), policy.share.value
            if adaptive is not None and adaptive.value is not None and share is not None:
                sentences.append(
                    f"Adaptive retrieval by {policy.kind}: {100 * adaptive.value:.1f}% on held-out splits, {share:.0%} "
                    f"of questions retrieve; against the better fixed arm {points(policy.gain)}."
                )
    return sentences


def _verdict(result: QaComparison, contrast: QaContrast) -> str:
    """Who is better, if interval and test both say so, or that it cannot be told; with McNemar's p."""
    labels, test = result.labels(), f", McNemar p {_comparison(contrast.p)}" if contrast.p is not None else ""
    if not contrast.difference.has_interval:
        return test
    if not contrast.difference.excludes_zero or (contrast.p is not None and contrast.p >= LEVEL):
        return f"{test}; no difference can be told"
    better = contrast.candidate if (contrast.difference.value or 0) > 0 else contrast.reference
    return f"{test}; {labels[better]} is better"


def _comparison(p: float | None) -> str:
    text = p_text(p)
    return text.replace("<", "< ") if text.startswith("<") else f"= {text}"
