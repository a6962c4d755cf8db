"""What the engine is asked and what it answers."""

from __future__ import annotations

import dataclasses

from retro.config.generation import SamplingConfig
from retro.inference.language_model import ChunkEvidence, Generated
from retro.inference.sampling import TokenLogprob
from retro.retrieval.policy import RetrievalPolicy


@dataclasses.dataclass(frozen=True)
class EngineRequest:
    """Continue a prompt of token ids (at least one; its last token ends a chunk, however long it is).

    until: strings that end the text before them; policy: when to retrieve, None = never; evidence: chunk ids of the
    database that serve the first M new tokens instead of anything retrieved (() = none), and generation then ends after
    them; neighbors: instead of evidence, token ids of what serves from the prompt's last token on, encoded anew after
    each M tokens (() = none); num_neighbors: at most so many per retrieval, None = as many as the engine retrieves;
    logprobs: None = none, otherwise those of the tokens and of so many alternatives.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    until: tuple[str, ...] = ()
    policy: RetrievalPolicy | None = None
    evidence: tuple[int, ...] | None = None
    neighbors: tuple[tuple[int, ...], ...] | None = None
    num_neighbors: int | None = None
    logprobs: int | None = None


@dataclasses.dataclass(frozen=True)
class Update:
    """What one step made for one request.

    tokens: new ids (the end-of-text token is not among them); text: new text that is safe to show, so that all of them
    together are the final text; logprobs: one per token if asked for; evidence: what was retrieved and serves from the
    new token on; finished: the whole result with the last update.
    """

    ticket: int
    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    evidence: tuple[ChunkEvidence, ...] = ()
    finished: Generated | None = None
