"""Questions whose best thresholds are known."""

from __future__ import annotations

import numpy as np

from retro.analysis.adaptive_questions import EXPENSES, AnsweredQuestions, ArmAnswers


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def arm(name, scores, *, seconds=1.0, prompt=10, logprobs=None):
    """An arm of these scores, with the same expenses for each question."""
    count = len(scores)
    values = {"seconds": seconds, "latency_ms": 1000 * seconds, "prompt_tokens": prompt, "encoder_tokens": 0,
              "new_tokens": 2}  # fmt: skip
    expenses = {key: np.full(count, float(values[key])) for key in EXPENSES}
    return ArmAnswers(name, np.asarray(scores, float), expenses, logprobs or [[-0.1, -0.2]] * count)


def answered(relations, popularity, closed, retrieval, **options):
    """Questions with a closed arm of 1 s and a retrieval arm of 3 s."""
    count = len(popularity)
    return AnsweredQuestions(
        ids=tuple(f"q{i}" for i in range(count)),
        relations=tuple(relations),
        popularity=np.asarray(popularity, float),
        units=np.arange(count),
        closed=arm("closed_book", closed, logprobs=options.get("logprobs")),
        retrieval=arm("retro", retrieval, seconds=3.0, prompt=50),
    )


def crossing_questions(rng, count, relations, steepness=1.0, sampled=True):
    """`relations`: name -> (b, c): the closed book knows an answer with probability sigmoid(steepness (log pop - b)),
    retrieval with probability c. sampled False: the scores are the probabilities. Also the true crossings."""
    names, pops, closed, retrieval, crossings = [], [], [], [], {}
    for name, (b, c) in relations.items():
        logs = rng.uniform(0.0, 12.0, count)
        knows = sigmoid(steepness * (logs - b))
        names += [name] * count
        pops += np.exp(logs).tolist()
        closed += (rng.random(count) < knows if sampled else knows).astype(float).tolist()
        retrieval += (rng.random(count) < c if sampled else np.full(count, c)).astype(float).tolist()
        crossings[name] = b + np.log(c / (1 - c)) / steepness
    return answered(names, pops, closed, retrieval), crossings
