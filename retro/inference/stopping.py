"""Text of tokens as they come, and the strings that end it."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from retro.data.tokenizer import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Text of one sequence's new tokens, given out as soon as it can no longer change.

    Held back: bytes of an unfinished character, and an end that may be the begin of a string of `until`. Once one of
    these is complete, `stopped` is True and the text ends before it.
    """

    def __init__(self, tokenizer: Tokenizer, until: Sequence[str] = ()) -> None:
        self._tokenizer, self._until = tokenizer, tuple(until)
        self._tokens: list[int] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # All text that is decided, given out or not, up to the stop string.
        self._text = ""
        self._given = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """All text so far, also what is held back because of `until`."""
        return self._text

    def add(self, token: int) -> str:
        """Take a token; returns new text that is safe to show."""
        self._tokens.append(token)
        return self._advance(final=False)

    def finish(self) -> str:
        """What was held back."""
        return "" if self.stopped else self._advance(final=True)

    def _advance(self, final: bool) -> str:
        before = len(self._text)
        if self._tokenizer.lossless:
            content = b"" if final else self._tokenizer.token_bytes(self._tokens[-1])
            self._text += self._decoder.decode(content, final)
        else:
            # Such tokenizers mend spaces by what stands beside a token: only the whole is right. What was given out
            # stays, also where a later token changes it (bytes that turn out not to be UTF-8 take those before along).
            whole = self._tokenizer.decode(self._tokens)
            whole = whole if final else whole.rstrip(_REPLACEMENT)
            self._text += whole[len(self._text) :]
        self._look_for_stop(before)
        safe = len(self._text) if final or self.stopped else len(self._text) - self._possible_begin()
        safe = max(safe, self._given)
        new, self._given = self._text[self._given : safe], safe
        return new

    def _look_for_stop(self, before: int) -> None:
        longest = max(map(len, self._until), default=0)
        begin = max(0, before - longest)
        places = [place for stop in self._until if (place := self._text.find(stop, begin)) >= 0]
        if places:
            self._text, self.stopped = self._text[: min(places)], True

    def _possible_begin(self) -> int:
        """Length of the longest end of the text that one of `until` begins with."""
        longest = max(map(len, self._until), default=0)
        for length in range(min(longest - 1, len(self._text)), 0, -1):
            if any(stop.startswith(self._text[-length:]) for stop in self._until):
                return length
        return 0
