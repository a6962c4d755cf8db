"""What a task may ask of a language model. Tasks are written against this protocol and run against a fake one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from retro.config.generation import SamplingConfig

if TYPE_CHECKING:
    from retro.data.batch import RetroBatch
    from retro.retrieval.policy import RetrievalPolicy


@dataclasses.dataclass(frozen=True)
class ScoreRequest:
    """How probable is `continuation` after `context`?

    Both are text (the context may be empty), or token ids taken as they are (a context of at least one, with its own
    begin-of-text token). first_chunk: tokens of the first chunk, 1..M; None = so many that the context ends a chunk and
    the continuation begins one. What fits the window but for the last token, which is not read, is scored in one piece.
    """

    context: str | tuple[int, ...]
    continuation: str | tuple[int, ...]
    first_chunk: int | None = None


@dataclasses.dataclass(frozen=True)
class Score:
    """logprob: natural log of the probability of all tokens; token_logprobs: of each; is_greedy: each token is the most
    probable one in its place."""

    logprob: float
    token_logprobs: tuple[float, ...]
    is_greedy: bool


@dataclasses.dataclass(frozen=True)
class GenerateRequest:
    """Continue a prompt.

    prompt: text, or token ids taken as they are (with their own begin-of-text token and padding); until: generation
    stops before the first of these; evidence: None = retrieve while generating, as the model was set up; chunk ids of
    the database = these serve all that is generated (at most one chunk), () = no neighbors at all; neighbors: token ids
    of the neighbors themselves instead of evidence, each of any length but 0: they serve from the prompt's last token
    on, however long the text gets (after each M tokens they are encoded anew), () = none; policy: when to retrieve,
    None = as the model was set up.
    """

    prompt: str | tuple[int, ...]
    max_new_tokens: int
    until: tuple[str, ...] = ()
    evidence: tuple[int, ...] | None = None
    neighbors: tuple[tuple[int, ...], ...] | None = None
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    policy: RetrievalPolicy | None = None


@dataclasses.dataclass(frozen=True)
class Retrieved:
    """One neighbor: database chunk id, its distance, and the id of its document."""

    chunk: int
    distance: float
    document: str


@dataclasses.dataclass(frozen=True)
class ChunkEvidence:
    """What was retrieved with one chunk: the query chunk is tokens start..stop of prompt and continuation together; its
    neighbors served the predictions of tokens stop..stop+M-1."""

    start: int
    stop: int
    neighbors: tuple[Retrieved, ...]


@dataclasses.dataclass(frozen=True)
class Generated:
    """prompt_tokens, new_tokens (without the end-of-text token); text: of the new tokens, cut before `until`;
    stop: "end" (end-of-text), "until" or "length"; evidence: per retrieval, in order.

    token_logprobs: natural log of the model's probability of each new token, and of the end-of-text token if stop is
    "end", before temperature, penalties and cuts; seconds: share of the time that the model took, each step's divided
    equally among those that were decoded in it. Neither is compared: both depend on what else was decoded, the first in
    its last bits.
    """

    prompt_tokens: tuple[int, ...]
    new_tokens: tuple[int, ...]
    text: str
    stop: str
    evidence: tuple[ChunkEvidence, ...] = ()
    token_logprobs: tuple[float, ...] = dataclasses.field(default=(), compare=False)
    seconds: float = dataclasses.field(default=0.0, compare=False)


@runtime_checkable
class LanguageModel(Protocol):
    """A language model as tasks see it. A score or text that the model cannot give is None or NaN, never 0 or ""."""

    def identity(self) -> dict[str, Any]:
        """What decides the answers (weights, tokenizer, retrieval), JSON-able."""

    def score_batch(self, batch: RetroBatch) -> np.ndarray:
        """Natural log-probabilities float32 [B, N] of the batch's targets, NaN where the loss mask is False.

        The batch brings its own neighbors; a batch without any is scored without cross-attention.
        """

    def loglikelihood(self, requests: Sequence[ScoreRequest]) -> list[Score | None]:
        """Probability of each continuation."""

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[Score | None]:
        """Probability of each whole text, every token once, windows as in pretraining."""

    def generate_until(self, requests: Sequence[GenerateRequest]) -> list[Generated | None]:
        """Continuations, in the order of the requests."""
