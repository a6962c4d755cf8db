"""Prepared questions that are quickly made, and a tokenizer whose tokens are words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from retro.data.qa.record import Passage, PreparedQuestion, QaQuestion
from retro.data.tokenizer import Tokenizer


class WordTokenizer(Tokenizer):
    """Each run of letters and digits, and each other character, is a token, with the space before it."""

    kind = "words"

    def __init__(self) -> None:
        super().__init__(5000, 1, 2, 0, True, "words")
        self.words: list[str] = ["<pad>", "<bos>", "<eos>"]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        return [[self._id(word) for word in re.findall(r" ?\w+| ?[^\w]", text)] for text in texts]

    def _id(self, word: str) -> int:
        if word not in self.words:
            self.words.append(word)
        return self.words.index(word)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.words[i] for i in ids if i > 2)

    def _decode_each(self, token_rows: Sequence[np.ndarray]) -> list[str]:
        return [self.decode(row.tolist()) for row in token_rows]

    def _piece_bytes(self) -> list[bytes]:
        return [word.encode() for word in self.words]


def passage(number: int, text: str = "", title: str = "") -> Passage:
    return Passage(title or f"T{number}", text or f"passage {number} says a{number}.", f"doc{number}", number)


def question(number: int, relation: str = "", passages: Sequence[Passage] | None = None, **fields) -> PreparedQuestion:
    given = tuple(passages) if passages is not None else (passage(number), passage(number + 1000))
    asked = QaQuestion(f"q{number}", f"what is {number}?", (f"a{number}",), (f"doc{number}",), relation=relation)
    return PreparedQuestion(asked, given, **fields)
