"""From the engine's updates of one request to one choice of an answer: text, log-probabilities, evidence and whom it
served."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from retro.inference.language_model import ChunkEvidence
from retro.serving.completion_response import Choice, Logprobs, Neighbor, Query, Retrieved, Served
from retro.serving.token_places import Decoder, TokenPlaces

_FINISH: dict[str, Literal["stop", "length"]] = {"end": "stop", "until": "stop", "length": "length"}


@dataclasses.dataclass
class _Serving:
    """A retrieval that serves: from new token `begin` (may be negative: the prompt) to at most `limit`."""

    index: int
    begin: int
    limit: int


class ChoiceText:
    """Turns updates into pieces of one choice. The pieces, put together by `join_choices`, are the whole choice."""

    def __init__(
        self,
        index: int,
        prompt: Sequence[int],
        decoder: Decoder,
        *,
        chunk_length: int,
        describe: Callable[[ChunkEvidence], list[Neighbor]],
        top_logprobs: int | None = None,
        echo: str = "",
    ) -> None:
        """index: of the choice; prompt: its token ids; describe: texts of a retrieval's neighbors (may read from disk);
        top_logprobs: alternatives per token, None = no log-probabilities; echo: text that the choice begins with."""
        self.index = index
        self._prompt, self._decoder = list(prompt), decoder
        self._chunk, self._describe, self._top, self._echo = chunk_length, describe, top_logprobs, echo
        self._tokens: list[int] = []
        self._places = TokenPlaces(decoder)
        self._text_length = len(echo)
        self._serving: _Serving | None = None
        self._retrievals = 0
        self._ended: list[Retrieved] = []
        self._pending: list[Retrieved] = []
        self._logprobs = Logprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        self._begun = False
        self.finish: Literal["stop", "length"] | None = None

    @property
    def num_tokens(self) -> int:
        """New tokens so far."""
        return len(self._tokens)

    def feed(self, update: Any) -> Choice | None:
        """What an update (retro.inference.engine.Update) adds to the choice; None while there is nothing to show."""
        before = len(self._tokens)
        for token in update.tokens:
            self._tokens.append(token)
            self._places.add(token)
        text = update.text
        if not self._begun:
            text, self._begun = self._echo + text, True
        self._text_length += len(update.text)
        for evidence in update.evidence:
            self._begin(evidence)
        if self._top is not None:
            self._add_logprobs(before, update)
        if update.finished is not None:
            self.finish = _FINISH[update.finished.stop]
            self._end(len(self._tokens))
            self._cut_back()
        elif self._serving is not None and len(self._tokens) >= self._serving.limit:
            self._end(self._serving.limit)
        if not text and not self._pending and self.finish is None:
            return None
        retrieved, self._pending = self._pending, []
        logprobs = None
        if self._top is not None:
            logprobs = self._logprobs
            self._logprobs = Logprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
            if self._top == 0:
                logprobs.top_logprobs = None
        return Choice(index=self.index, text=text, logprobs=logprobs, finish_reason=self.finish, retrieved=retrieved)

    def _begin(self, evidence: ChunkEvidence) -> None:
        place = evidence.stop - len(self._prompt)
        self._end(place)
        index, self._retrievals = self._retrievals, self._retrievals + 1
        begin = max(0, place)
        query = (self._prompt + self._tokens)[evidence.start : evidence.stop]
        self._pending.append(
            Retrieved(
                index=index,
                query=Query(token_start=evidence.start, token_stop=evidence.stop, text=self._decoder.decode(query)),
                served=Served(token_start=begin, token_stop=None, text_start=self._offset(begin), text_stop=None),
                neighbors=self._describe(evidence),
            )
        )
        self._serving = _Serving(index, begin, max(0, place + self._chunk))

    def _end(self, at: int) -> None:
        """The retrieval that serves stops to: before new token `at`, or where its reach ends."""
        serving, self._serving = self._serving, None
        if serving is None:
            return
        stop = max(serving.begin, min(at, serving.limit))
        served = Served(
            token_start=serving.begin,
            token_stop=stop,
            text_start=self._offset(serving.begin),
            text_stop=self._offset(stop),
        )
        self._set_served(serving.index, served)
        self._ended.append(Retrieved(index=serving.index, served=served))

    def _set_served(self, index: int, served: Served) -> None:
        for entry in self._pending:
            if entry.index == index:  # begins and ends in one piece
                entry.served = served
                return
        self._pending.append(Retrieved(index=index, served=served))

    def _cut_back(self) -> None:
        """A stop string can begin before the retrieval of the token that completed it: say again what it served."""
        for entry in self._ended:
            served, length = entry.served, self._text_length
            assert served.text_stop is not None
            if served.text_stop > length:
                cut = {"text_start": min(served.text_start, length), "text_stop": length}
                self._set_served(entry.index, served.model_copy(update=cut))

    def _offset(self, token: int) -> int:
        """Where new token `token` begins in the choice's text; once it is finished, nothing is behind its end."""
        if self.finish is not None and token == len(self._tokens):
            return self._text_length
        place = len(self._echo) + self._places.begin(token)
        return place if self.finish is None else min(place, self._text_length)

    def _add_logprobs(self, before: int, update: Any) -> None:
        for offset, (token, found) in enumerate(zip(update.tokens, update.logprobs, strict=True)):
            self._logprobs.tokens.append(self.token_text(token))
            self._logprobs.token_logprobs.append(_finite(found.logprob))
            self._logprobs.text_offset.append(self._offset(before + offset))
            assert self._logprobs.top_logprobs is not None
            top = {self.token_text(other): _finite(value) for other, value in found.top}
            self._logprobs.top_logprobs.append(top)

    def token_text(self, token: int) -> str:
        """Text of one token; "bytes:\\xe2" for part of a character, "token:2" for one that stands for no text."""
        content = self._decoder.token_bytes(token)
        if not content:
            return f"token:{token}"
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def _finite(value: float) -> float:
    # JSON has no infinity; OpenAI's answers have -9999 for it.
    return value if math.isfinite(value) else -9999.0


def join_choices(pieces: Sequence[Choice]) -> Choice:
    """One choice of the pieces of one, in order."""
    joined = Choice(index=pieces[0].index, text="".join(piece.text for piece in pieces))
    joined.finish_reason = pieces[-1].finish_reason
    for piece in pieces:
        if piece.logprobs is not None:
            if joined.logprobs is None:
                joined.logprobs = Logprobs(tokens=[], token_logprobs=[], top_logprobs=None, text_offset=[])
            joined.logprobs.tokens += piece.logprobs.tokens
            joined.logprobs.token_logprobs += piece.logprobs.token_logprobs
            joined.logprobs.text_offset += piece.logprobs.text_offset
            if piece.logprobs.top_logprobs is not None:
                joined.logprobs.top_logprobs = (joined.logprobs.top_logprobs or []) + piece.logprobs.top_logprobs
        for entry in piece.retrieved:
            known = next((e for e in joined.retrieved if e.index == entry.index), None)
            if known is None:
                joined.retrieved.append(entry.model_copy())
            else:
                known.served = entry.served
    return joined
