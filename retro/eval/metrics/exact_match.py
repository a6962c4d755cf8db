"""Exact match and F1 of short answers, always the best over all accepted answers.

Normalisations. `normalise_answer` is SQuAD's (Rajpurkar et al. 2016; the papers' question answering): lower case,
no punctuation, no articles. `normalise_nq` is that after Unicode decomposition (NQ-open; Lee et al. 2019). Both are
wrong for code, where they make -1 and 1 the same answer; `normalise_literal` keeps what has a meaning there and drops
only quotes, back-ticks and white space.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_KEEPS_ITS_STOP = re.compile(r"^[-+]?\d+\.$|\.\.$")  # 1. is a number, `...` a value
_LITERAL_TOKENS = re.compile(r"\d+\.\d+(?:[eE][+-]?\d+)?|\w+|[^\w\s]")

Normalise = Callable[[str], str]


# The same accepted answers are compared with every arm's prediction.
@lru_cache(maxsize=1 << 17)
def normalise_answer(text: str) -> str:
    """SQuAD's: lower case, then without punctuation, then without articles, then with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def normalise_nq(text: str) -> str:
    """NQ-open's and EfficientQA's: SQuAD's of the text in Unicode form NFD, so that an accent written as one character
    equals the same accent written as two."""
    return normalise_answer(unicodedata.normalize("NFD", text))


def normalise_literal(text: str) -> str:
    """Values and types in code: without back-ticks, quotes and a closing full stop, with single spaces.

    Case, signs, brackets and dots stay: `-1` is not `1`, and `None` is not `none`.
    """
    text = " ".join(text.replace("`", "").split())
    text = text[:-1].rstrip() if text.endswith(".") and not _KEEPS_ITS_STOP.search(text) else text
    for quote in ('"', "'"):
        if len(text) >= 2 and text[0] == text[-1] == quote:
            text = text[1:-1].strip()
    return text


def exact_match(prediction: str, answers: Sequence[str], normalise: Normalise = normalise_answer) -> float:
    """1.0 if the prediction equals any of the answers after normalisation, else 0.0. ValueError without answers."""
    _check(answers)
    found = normalise(prediction)
    return float(any(found == normalise(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str], normalise: Normalise = normalise_answer) -> float:
    """Best F1 of tokens over the answers, in 0..1. ValueError without answers.

    Tokens are words after `normalise_answer`, and words and signs after any other normalisation. Two empty texts agree.
    """
    _check(answers)
    return max(_f1(_tokens(prediction, normalise), _tokens(answer, normalise)) for answer in answers)


def _check(answers: Sequence[str]) -> None:
    if not answers:
        raise ValueError("answers: expected at least one accepted answer, found none")


def _tokens(text: str, normalise: Normalise) -> list[str]:
    text = normalise(text)
    return text.split() if normalise is normalise_answer else _LITERAL_TOKENS.findall(text)


def _f1(prediction: list[str], answer: list[str]) -> float:
    if not prediction or not answer:
        return float(prediction == answer)
    shared = sum((Counter(prediction) & Counter(answer)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(answer)
    return 2 * precision * recall / (precision + recall)
