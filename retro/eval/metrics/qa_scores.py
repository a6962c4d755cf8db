"""Scores of one answer to an open question, by name; each is the best over all accepted answers.

exact_match, f1: after SQuAD's normalisation (Rajpurkar et al. 2016; the papers' metric for Natural Questions and
TriviaQA); exact_match_nq: after NQ-open's; substring: PopQA's accuracy (Mallen et al. 2023, section 4), which rewards
long answers and takes "art" in "artist" for right; substring_strict: the same with whole words after normalisation;
regex: CuratedTREC's (Chen et al. 2017, DrQA); exact_match_literal, f1_literal: for answers that are code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from retro.config.errors import ArtifactMismatchError
from retro.data.questions import parse_answer
from retro.eval.metrics.bits_per_byte import Row
from retro.eval.metrics.exact_match import exact_match, f1, normalise_answer, normalise_literal, normalise_nq

Metric = Callable[[str, Sequence[str]], float]


def substring(text: str, answers: Sequence[str]) -> float:
    """1.0 if an answer, as it is, lower-cased or capitalised, stands anywhere in the first line of the raw text.

    PopQA's rule: the other letters of a capitalised answer are lower-case, and nothing is normalised. ValueError
    without answers.
    """
    _check(answers)
    line = text.lstrip("\n").split("\n")[0]
    return float(any(form in line for answer in answers for form in (answer, answer.lower(), answer.capitalize())))


def substring_strict(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the words of an answer stand side by side in the prediction, both after SQuAD's normalisation.

    An answer of which nothing is left ("The The") is compared by its own lower-case words. ValueError without answers.
    """
    _check(answers)
    whole = f" {normalise_answer(prediction)} "
    raw = f" {' '.join(prediction.lower().split())} "
    for answer in answers:
        words = normalise_answer(answer)
        if words and f" {words} " in whole:
            return 1.0
        if not words and answer.strip() and f" {' '.join(answer.lower().split())} " in raw:
            return 1.0
    return 0.0


def regex_match(prediction: str, patterns: Sequence[str]) -> float:
    """1.0 if a pattern matches at the begin of the prediction, in either case (DrQA's rule; what follows the match is
    free). ValueError without patterns or for one that does not compile."""
    _check(patterns)
    return float(any(_compiled(pattern).match(prediction) is not None for pattern in patterns))


@lru_cache(maxsize=1 << 14)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    except re.error as error:
        raise ValueError(f"not a regular expression ({error}): {pattern!r}") from None


def _check(answers: Sequence[str]) -> None:
    if not answers:
        raise ValueError("answers: expected at least one accepted answer, found none")


# name -> (field of the row that it reads, metric)
METRICS: dict[str, tuple[str, Metric]] = {
    "exact_match": ("prediction", exact_match),
    "f1": ("prediction", f1),
    "exact_match_nq": ("prediction", lambda text, answers: exact_match(text, answers, normalise_nq)),
    "substring": ("text", substring),
    "substring_strict": ("prediction", substring_strict),
    "regex": ("prediction", regex_match),
    "exact_match_literal": ("prediction", lambda text, answers: exact_match(text, answers, normalise_literal)),
    "f1_literal": ("prediction", lambda text, answers: f1(text, answers, normalise_literal)),
}


def check_metrics(names: Sequence[str], where: str) -> None:
    """Raise ArtifactMismatchError unless every name is a metric; `where` says whose names they are."""
    for name in names:
        if name not in METRICS:
            raise ArtifactMismatchError(f"{where}: expected metrics out of {', '.join(METRICS)}, found {name!r}")


def score_answer(row: Row, metrics: Sequence[str]) -> dict[str, float | None]:
    """Each metric (0..1) of a row with "text", "prediction" and "answers"; None where the model gave no answer."""
    if row["prediction"] is None:
        return dict.fromkeys(metrics)
    return {name: METRICS[name][1](row[METRICS[name][0]], row["answers"]) for name in metrics}


def score_text(text: str, answers: Sequence[str], metrics: Sequence[str]) -> dict[str, float | None]:
    """`score_answer` of a text that no row holds (a guess)."""
    return score_answer({"text": text, "prediction": parse_answer(text), "answers": answers}, metrics)
