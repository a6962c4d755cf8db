"""Cutting passages so that a prompt fits."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

from retro.data.qa.record import Passage


def fit_passages(
    encode: Callable[[Sequence[Passage | None]], list[int]], passages: list[Passage | None], limit: int
) -> tuple[list[int] | None, bool, bool]:
    """A prompt of at most `limit` tokens.

    encode: tokens of the prompt with these passages, None = without; passages: of each question in it, the asked one
    last. Where they are too long, the questions share the room that is left without any passage, the last one first.
    Returns (tokens, whether a passage was cut or left out, whether the last passage stands in the prompt), tokens None
    if the prompt does not fit without passages either.
    """
    prompt = encode(passages)
    if len(prompt) <= limit:
        return prompt, False, passages[-1] is not None
    bare = [None] * len(passages)
    if len(encode(bare)) > limit:
        return None, False, False
    cut: list[Passage | None] = list(bare)
    waiting = [i for i in reversed(range(len(passages))) if passages[i] is not None]
    # Each gets an equal share of what those before it left.
    while waiting:
        i = waiting.pop(0)
        room = limit - len(encode(cut))
        share = len(encode(cut)) + room // (len(waiting) + 1)
        passage = passages[i]
        assert passage is not None

        def fits(text: str, i: int = i, passage: Passage = passage, share: int = share) -> bool:
            trial = list(cut)
            trial[i] = dataclasses.replace(passage, text=text)
            return len(encode(trial)) <= share

        text = cut_text(" ".join(passage.text.split()), fits)
        cut[i] = dataclasses.replace(passage, text=text) if text else None
    return encode(cut), True, cut[-1] is not None


_SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f][\"'\u201d\u2019)\]]*(?=\s|$)")


def cut_text(text: str, fits: Callable[[str], bool]) -> str:
    """The longest begin of `text` that fits: all of it, whole sentences if these are half of what fits, whole words, or
    characters where there is no word that fits; "" if nothing does. `fits` must hold for every begin of a text that
    fits, about."""
    if fits(text):
        return text
    words = _longest(text, [match.start() for match in re.finditer(r"\s+", text)], fits)
    if not words:
        return _longest(text, list(range(1, len(text))), fits)
    ends = [match.end() for match in _SENTENCE_END.finditer(words)]
    whole = words[: ends[-1]] if ends else ""
    return whole if 2 * len(whole) >= len(words) and fits(whole) else words


def _longest(text: str, ends: Sequence[int], fits: Callable[[str], bool]) -> str:
    low, high = 0, len(ends)  # ends[:low] fit
    while low < high:
        middle = (low + high) // 2
        if fits(text[: ends[middle]]):
            low = middle + 1
        else:
            high = middle
    return text[: ends[low - 1]] if low else ""
