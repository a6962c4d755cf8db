"""Answers that need no reading: the commonest of the training questions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from retro.data.qa.record import QaQuestion
from retro.eval.metrics.bits_per_byte import Row
from retro.eval.metrics.exact_match import normalise_answer

#: {"all": answer, "group": {group: answer}, "relation": {group: {relation: answer}}}; {} without training questions.
Guesses = Mapping[str, Any]


def commonest_answers(train: Iterable[QaQuestion]) -> dict[str, Any]:
    """Guesses learnt from the first answers of training questions.

    Answers that SQuAD's normalisation makes equal count as one, which is spelled as it is most often; ties go to what
    sorts first.
    """
    counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for question in train:
        answer = normalise_answer(question.answers[0])
        spellings[answer][question.answers[0]] += 1
        place = (question.group, question.relation)
        for depth in range(3):
            counts[place[:depth]][answer] += 1
    if not counts:
        return {}
    guess = {key: _commonest(spellings[_commonest(counter)]) for key, counter in sorted(counts.items())}
    relations: dict[str, dict[str, str]] = defaultdict(dict)
    for key, answer in guess.items():
        if len(key) == 2:
            relations[key[0]][key[1]] = answer
    return {
        "all": guess[()],
        "group": {key[0]: answer for key, answer in guess.items() if len(key) == 1},
        "relation": dict(relations),
    }


def guesses_for(row: Row, guesses: Guesses) -> dict[str, str]:
    """What each guess says to the question of a row: "commonest_answer" of all training questions,
    "commonest_of_group" and "commonest_of_relation" (each of the next larger set where the training questions have no
    such group or relation); {} without guesses."""
    if not guesses:
        return {}
    group = guesses["group"].get(row["group"], guesses["all"])
    return {
        "commonest_answer": guesses["all"],
        "commonest_of_group": group,
        "commonest_of_relation": guesses["relation"].get(row["group"], {}).get(row["relation"], group),
    }


def _commonest(counter: Counter[str]) -> str:
    return min(counter.items(), key=lambda item: (-item[1], item[0]))[0]
