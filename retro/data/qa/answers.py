"""Whether a text holds an answer: Dense Passage Retrieval's test, by which recall of answers is reported.

An answer is held if its tokens follow each other in the text, after Unicode decomposition (NFD) and lower-casing; a
token is a run of letters, digits and marks, or any other single character but separators and control characters
(Karpukhin et al. 2020, `has_answer` and `SimpleTokenizer` of their code). Regular expressions are searched for in the
decomposed text, in either case (CuratedTREC).
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Literal

AnswerKind = Literal["text", "regex"]

# Between tokens: a control character, which no token holds.
_BORDER = "\0"


def answer_tokens(text: str) -> list[str]:
    """Lower-cased tokens of a text, as `has_answer` compares them."""
    return [token.lower() for token in _token_pattern().findall(unicodedata.normalize("NFD", text))]


def has_answer(text: str, answers: Sequence[str], kind: AnswerKind = "text") -> bool:
    """Whether `text` holds any of the answers. Raises ValueError for a broken regular expression."""
    return AnswerFinder(answers, kind).found_in(text)


class AnswerFinder:
    """`has_answer` for one question and many texts.

    An answer without tokens (only spaces, say) is held by no text; an expression that matches the empty text is held
    by every one.
    """

    def __init__(self, answers: Sequence[str], kind: AnswerKind = "text") -> None:
        """Raises ValueError for a broken regular expression."""
        self._needles: list[str] = []
        self._patterns: list[re.Pattern[str]] = []
        if kind == "text":
            self._needles = [_joined(tokens) for tokens in map(answer_tokens, answers) if tokens]
            return
        for answer in answers:
            try:
                self._patterns.append(re.compile(unicodedata.normalize("NFD", answer), re.IGNORECASE | re.MULTILINE))
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"not a regular expression ({error}): {answer!r}") from None

    def found_in(self, text: str) -> bool:
        """Whether the text holds any of the answers."""
        if self._patterns:
            decomposed = unicodedata.normalize("NFD", text)
            return any(pattern.search(decomposed) for pattern in self._patterns)
        if not self._needles:
            return False
        tokens = _joined(answer_tokens(text))
        return any(needle in tokens for needle in self._needles)

    def first_in(self, texts: Sequence[str]) -> int | None:
        """Number of the first text that holds an answer, from 0; None where none does."""
        return next((i for i, text in enumerate(texts) if self.found_in(text)), None)


def _joined(tokens: Sequence[str]) -> str:
    return _BORDER + _BORDER.join(tokens) + _BORDER


@cache
def _token_pattern() -> re.Pattern[str]:
    r"""`[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]`, which the standard library's expressions cannot say."""
    classes: dict[str, list[str]] = {"word": [], "nothing": []}
    previous, start = "", 0
    for code in range(sys.maxunicode + 2):
        category = unicodedata.category(chr(code))[0] if code <= sys.maxunicode else ""
        kind = "word" if category in ("L", "N", "M") else "nothing" if category in ("Z", "C") else ""
        if kind != previous:
            if previous:
                classes[previous].append(f"\\U{start:08x}-\\U{code - 1:08x}")
            previous, start = kind, code
    return re.compile(f"[{''.join(classes['word'])}]+|[^{''.join(classes['nothing'])}]")
