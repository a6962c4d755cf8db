"""Where the tokens of a text begin in it, as they come."""

from __future__ import annotations

import codecs
from typing import Any, Protocol

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Decoder(Protocol):
    """The part of retro.data.tokenizer.Tokenizer that is needed here."""

    @property
    def lossless(self) -> bool: ...
    def decode(self, ids: Any, /) -> str: ...
    def token_bytes(self, token: int, /) -> bytes: ...


class TokenPlaces:
    """Takes tokens; `begin(i)` is the place of token i in the text of all, in code points.

    A character over a border between tokens belongs to what follows; bytes that turn out to be no character are shown
    as one, which belongs to the tokens that they are of.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._tokens: list[int] = []
        self._begins: list[int] = []
        self._length = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, token: int) -> None:
        """Take the next token."""
        self._tokens.append(token)
        if not self._decoder.lossless:
            # Such tokenizers mend spaces by what stands beside a token: only the whole is right.
            self._begins.append(self._length)
            self._length = len(self._decoder.decode(self._tokens).rstrip(_REPLACEMENT))
            return
        content = self._decoder.token_bytes(token)
        self._begins.append(self._length + self._breaks_off(content[:1]))
        self._length += len(self._utf8.decode(content))

    def begin(self, token: int) -> int:
        """Place of token number `token`; of one that has not come: behind the characters that are complete."""
        return self._begins[token] if token < len(self._begins) else self._length

    def _breaks_off(self, first: bytes) -> bool:
        """Whether this byte does not go on with the unfinished character before it, which then is none."""
        unfinished = self._utf8.getstate()[0]
        if not unfinished or not first:
            return False
        probe = codecs.getincrementaldecoder("utf-8")("replace")
        text = probe.decode(unfinished + first)
        return len(text) + bool(probe.getstate()[0]) > 1
