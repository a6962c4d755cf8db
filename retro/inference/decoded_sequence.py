"""One request while it is decoded: its tokens, its retrievals, and what came of it."""

from __future__ import annotations

import dataclasses

import numpy as np
from torch import Tensor

from retro.inference.draft import Draft
from retro.inference.given_neighbors import Neighbors
from retro.inference.language_model import ChunkEvidence, Generated
from retro.inference.prediction import Prediction
from retro.inference.requests import EngineRequest, Update
from retro.inference.sampling import Sampler, TokenLogprob, probability_and_entropy, token_logprob
from retro.inference.stopping import TextStream
from retro.retrieval.policy import Moment
from retro.retrieval.rule_policy import IfUnsure


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Neighbors of the chunk whose last token is at position `end` of the whole sequence."""

    end: int
    neighbors: Neighbors


class DecodedSequence:
    """Tokens of the prompt and after it, of which the model sees those from `dropped` on, at most `window` of them.

    When the window is full, its oldest tokens are dropped so that three quarters of it remain, and at least a chunk,
    within which the retrieval that serves lies: the rest is computed anew once for every quarter of a window. Chunks
    stay where they are.
    """

    def __init__(
        self, ticket: int, request: EngineRequest, sampler: Sampler, text: TextStream, window: int, chunk_length: int
    ) -> None:
        self.ticket, self.request = ticket, request
        self.window, self.chunk_length = window, chunk_length
        self.tokens = list(request.prompt)
        # Room for at least one token to come, without which the first step would compute it all again.
        self.dropped = max(0, len(self.tokens) - (window - 1))
        self.retrievals: list[Retrieval] = []
        self.evidence: list[ChunkEvidence] = []
        self._new_evidence: list[ChunkEvidence] = []
        self._sampler, self._text = sampler, text
        self._last_logits: Tensor | None = None
        #: Holds updates back while the answer without retrieval may still be discarded.
        self.draft: Draft | None = None
        if isinstance(request.policy, IfUnsure) and not self.brings_neighbors:
            self.draft = Draft(request.policy)
        self._token_logprobs: list[float] = []
        #: Share of the time that decoding took so far.
        self.seconds = 0.0

    @property
    def new_tokens(self) -> list[int]:
        return self.tokens[len(self.request.prompt) :]

    @property
    def token_logprobs(self) -> list[float]:
        """Natural, of the model's probability of each token drawn so far, the end-of-text token included."""
        return self._token_logprobs

    @property
    def is_plain(self) -> bool:
        """Whether the most probable tokens are all that it draws and tells."""
        sampling = self.request.sampling
        greedy = sampling.temperature == 0 and sampling.repetition_penalty == 1.0
        return greedy and self.request.logprobs is None

    @property
    def is_full(self) -> bool:
        """Whether the window has no room for the last token besides those before it."""
        return len(self.tokens) - self.dropped > self.window

    def drop(self) -> None:
        """Make room."""
        self.dropped = len(self.tokens) - max(self.chunk_length, self.window * 3 // 4)

    @property
    def retrieves_prompt(self) -> bool:
        """Whether the prompt's chunks retrieve."""
        policy = self.request.policy
        return policy is not None and policy.prompt and not self.brings_neighbors

    @property
    def brings_neighbors(self) -> bool:
        """Whether the request says what serves (which may be nothing), so that nothing is retrieved."""
        return self.request.evidence is not None or self.request.neighbors is not None

    @property
    def renews_neighbors(self) -> bool:
        """Whether the neighbors that the request brought have served their M tokens and are to go on serving."""
        return bool(self.request.neighbors) and len(self.tokens) - 1 - self.retrievals[-1].end >= self.chunk_length

    def prompt_ends(self) -> list[int]:
        """Positions of the last tokens of the prompt's chunks in the window, counted from the last token back."""
        last = len(self.request.prompt) - 1
        return sorted(range(last, self.dropped - 1, -self.chunk_length))

    def query(self, end: int) -> np.ndarray:
        """Tokens int64 [<= M] of the chunk that ends at `end`."""
        return np.array(self.tokens[max(self.dropped, end + 1 - self.chunk_length) : end + 1], dtype=np.int64)

    def add_retrieval(self, end: int, neighbors: Neighbors, evidence: ChunkEvidence | None) -> None:
        """Neighbors that serve from position `end` on; evidence None = they were given, not retrieved."""
        self.retrievals.append(Retrieval(end, neighbors))
        if evidence is not None:
            self.evidence.append(evidence)
            self._new_evidence.append(evidence)

    def wants_retrieval(self) -> bool:
        """Whether the policy asks for a retrieval with the last tokens."""
        policy = self.request.policy
        if policy is None or self.brings_neighbors or not self.new_tokens:
            return False
        end = len(self.tokens) - 1
        since = end - self.retrievals[-1].end if self.retrievals else None
        logits, token = self._last_logits, self.tokens[-1]
        assert logits is not None
        moment = Moment(
            since,
            self.chunk_length,
            self.new_tokens,
            certainty=lambda: probability_and_entropy(logits, token),
            describe=lambda: self._text.text,
        )
        return policy.wants(moment)

    def accept(self, prediction: Prediction, eos: int) -> Update:
        """Draw the next token."""
        request, logits = self.request, prediction.logits
        token = self._sampler.draw(logits, prediction.best)
        self._token_logprobs.append(prediction.logprob(token))
        evidence, self._new_evidence = tuple(self._new_evidence), []
        if token == eos:
            return self._finish("end", (), "", (), evidence)
        self.tokens.append(token)
        self._last_logits = logits
        logprobs = () if request.logprobs is None else (token_logprob(logits, token, request.logprobs),)
        text = self._text.add(token)
        if self._text.stopped:
            return self._finish("until", (token,), text, logprobs, evidence)
        if len(self.new_tokens) >= self._most_tokens():
            return self._finish("length", (token,), text, logprobs, evidence)
        return Update(self.ticket, (token,), text, logprobs, evidence)

    def _most_tokens(self) -> int:
        given = self.request.evidence is not None
        return min(self.request.max_new_tokens, self.chunk_length) if given else self.request.max_new_tokens

    def _finish(
        self,
        stop: str,
        tokens: tuple[int, ...],
        text: str,
        logprobs: tuple[TokenLogprob, ...],
        evidence: tuple[ChunkEvidence, ...],
    ) -> Update:
        text += self._text.finish()
        result = Generated(
            self.request.prompt,
            tuple(self.new_tokens),
            self._text.text,
            stop,
            tuple(self.evidence),
            tuple(self._token_logprobs),
            self.seconds,
        )
        return Update(self.ticket, tokens, text, logprobs, evidence, result)
