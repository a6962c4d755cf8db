"""Sentences made from numbers. They say who is better only where the interval excludes zero, whoever that is."""

from __future__ import annotations

from retro.analysis.bootstrap import Estimate
from retro.analysis.cells import percent
from retro.analysis.comparison import Comparison
from retro.analysis.curves import Moment, TrainingComparison
from retro.analysis.perplexity import Contrast, PerplexityComparison
from retro.analysis.qa_wording import qa_headline, qa_sentences


def relative_with_interval(estimate: Estimate) -> str:
    """'-4.0% [95% CI -4.6, -3.4]'."""
    if estimate.value is None:
        return "nothing to compare"
    text = percent(estimate.value)
    if estimate.low is None or estimate.high is None:
        return f"{text} (too few documents for an interval)"
    return f"{text} [95% CI {percent(estimate.low)[:-1]}, {percent(estimate.high)[:-1]}]"


def duration(seconds: float) -> str:
    """Seconds as people say them: '45 s', '12.3 min', '2.1 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def verdict(relative: Estimate, candidate: str, reference: str) -> str:
    """Who is better, or that it cannot be told."""
    if relative.value is None or not relative.has_interval:
        return ""
    if not relative.excludes_zero:
        return "the interval includes zero: no difference can be told"
    return f"{candidate if relative.value < 0 else reference} is better"


def headline(comparison: Comparison) -> str:
    """The one sentence at the top."""
    result = comparison.main_perplexity
    if result is None and comparison.qa:
        return qa_headline(comparison.qa[0])
    if result is None:
        return _headline_from_training(comparison)
    contrast = main_contrast(comparison)
    labels = result.labels()
    if contrast is None:
        key = result.main[0]
        score = result.score(key).value
        where = f" over {result.subsets[0].chunks:,} {result.split} chunks".replace("  ", " ")
        return f"{labels[key]}: {score:.3f} bits per byte{where}." if score is not None else "Nothing was scored."
    candidate, reference = labels[contrast.candidate], labels[contrast.reference]
    own, other = result.score(contrast.candidate).value, result.score(contrast.reference).value
    if own is None or other is None:
        return "Nothing was scored."
    text = (
        f"{candidate} {own:.3f} vs {reference} {other:.3f} bits per byte: {relative_with_interval(contrast.relative)}"
    )
    if contrast.relative.excludes_zero and (contrast.relative.value or 0) < 0:
        lost = shuffled_sentence(result, contrast)
        return f"{text}; {lost}." if lost else f"{text}."
    found = verdict(contrast.relative, candidate, reference)
    return f"{text}; {found}." if found else f"{text}."


def main_contrast(comparison: Comparison) -> Contrast | None:
    """The contrast of the headline: the first other run's main series against the reference's; within one run,
    retrieval on against off."""
    result = comparison.main_perplexity
    if result is None:
        return None
    if len(result.main) > 1:
        return result.contrast(result.main[1], result.main[0])
    run = result.main[0].rpartition("/")[0]
    return result.contrast(f"{run}/on", f"{run}/off")


def shuffled_sentence(result: PerplexityComparison, contrast: Contrast) -> str | None:
    """'with shuffled neighbors 81% of the gain is gone', or None without such a control."""
    run = contrast.candidate.rpartition("/")[0]
    share = next((item.share for item in result.shuffled if item.run == run), None)
    if share is None or share.value is None:
        return None
    if share.value > 1.005:
        return "with shuffled neighbors all of the gain is gone, and more"
    return f"with shuffled neighbors {max(0.0, share.value):.0%} of the gain is gone"


def _headline_from_training(comparison: Comparison) -> str:
    for item in comparison.training:
        if item.equal_steps is not None:
            own, other = item.equal_steps
            titles = {run.name: run.title for run in comparison.runs}
            return (
                f"No test evaluation of the runs yet. At step {own.step:,.0f} the validation loss is "
                f"{own.loss:.3f} for {titles[own.run]} and {other.loss:.3f} for {titles[other.run]} (no interval)."
            )
    for run in comparison.runs:
        if run.training is not None and run.training.validation_loss is not None:
            loss, steps = run.training.validation_loss, run.training.steps
            return f"No test evaluation yet. {run.title}: validation loss {loss:.3f} after {steps:,} steps."
    return "These run folders hold neither an evaluation nor a validation yet."


def supporting_sentences(comparison: Comparison) -> list[str]:
    """What belongs beside the headline: without leaks, against its own controls, at equal time, the cost."""
    sentences = []
    result, contrast = comparison.main_perplexity, main_contrast(comparison)
    if result is not None and contrast is not None:
        labels = result.labels()
        low = result.contrast(contrast.candidate, contrast.reference, "low_overlap")
        if low is not None and low.relative.value is not None:
            subset = next(s for s in result.subsets if s.key == "low_overlap")
            found = verdict(low.relative, labels[contrast.candidate], labels[contrast.reference])
            sentences.append(
                f"On the {subset.chunks:,} chunks of which a retrieved text repeats at most half in one piece "
                f"(r(C) ≤ 0.5): {relative_with_interval(low.relative)}" + (f"; {found}." if found else ".")
            )
        run = contrast.candidate.rpartition("/")[0]
        off = result.contrast(f"{run}/on", f"{run}/off")
        if off is not None and len(result.main) > 1 and off.relative.value is not None:
            sentences.append(f"The same weights with retrieval on against off: {relative_with_interval(off.relative)}.")
    for place, answered in enumerate(comparison.qa):
        if result is not None or place:  # else it is the headline
            sentences.append(qa_headline(answered))
        sentences.extend(qa_sentences(answered))
    titles = {run.name: run.title for run in comparison.runs}
    for item in comparison.training:
        sentences.extend(training_sentences(item, titles, comparison))
    return sentences


def training_sentences(item: TrainingComparison, titles: dict[str, str], comparison: Comparison) -> list[str]:
    """Equal steps, equal time and cost of one pair of runs."""
    candidate, reference = titles[item.candidate], titles[item.reference]
    sentences = []
    if item.equal_steps is not None:
        own, other = item.equal_steps
        data, note = "the same data" if item.same_data else "not the same data", _unfinished(own, other, titles)
        sentences.append(f"Equal steps ({own.step:,.0f}, {data}): {_moments(own, other, titles)}{note}.")
    if item.equal_time is not None:
        own, other = item.equal_time
        note = _unfinished(own, other, titles)
        sentences.append(f"Equal training time ({duration(own.elapsed_s)}): {_moments(own, other, titles)}{note}.")
    if item.step_cost is not None:
        sentences.append(f"One token costs {candidate} {item.step_cost:.2f} times the training time of {reference}.")
    if item.seconds_to_match is not None:
        total = next(
            (run.training.elapsed_s for run in comparison.runs if run.name == item.reference and run.training), 0
        )
        sentences.append(
            f"{candidate} reaches {reference}'s final validation loss after {duration(item.seconds_to_match)} "
            f"of training; {reference} took {duration(total)}."
        )
    elif item.equal_steps is not None:
        sentences.append(f"{candidate} did not reach {reference}'s final validation loss in this run.")
    return sentences


def _unfinished(own: Moment, other: Moment, titles: dict[str, str]) -> str:
    """Whose learning rate was still high at the moment of a comparison, which flatters the other."""
    return "".join(
        f"; {titles[m.run]} was at {m.share_of_steps:.0%} of its steps, its learning rate not yet fully decayed"
        for m in (own, other)
        if m.share_of_steps < 0.999
    )


def _moments(own: Moment, other: Moment, titles: dict[str, str]) -> str:
    read = ", read between two validations" if own.interpolated or other.interpolated else ""
    if own.bits_per_byte is not None and other.bits_per_byte is not None:
        a, b, unit = own.bits_per_byte, other.bits_per_byte, "bits per byte"
    else:
        a, b, unit = own.loss, other.loss, "nats per token"
    return f"validation {titles[own.run]} {a:.3f}, {titles[other.run]} {b:.3f} {unit} ({percent(a / b - 1)}{read})"
