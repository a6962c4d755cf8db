"""RetroLM: a trained model, its tokenizer and its retriever behind the LanguageModel protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from retro.config.errors import ArtifactMismatchError, ConfigError
from retro.data.chunk_store import ChunkStore
from retro.data.tokenizer import Tokenizer
from retro.inference.engine import Engine
from retro.inference.language_model import Generated, GenerateRequest, Score, ScoreRequest
from retro.inference.precision import inference
from retro.inference.requests import EngineRequest, Update
from retro.inference.scored_piece import ScoredPiece, continuation_pieces, rolling_pieces
from retro.inference.scoring import Scorer
from retro.retrieval.policy import Every, RetrievalPolicy

if TYPE_CHECKING:
    from retro.data.batch import RetroBatch
    from retro.model import RetroModel
    from retro.retrieval.retriever import Retriever


class RetroLM:
    """Implements LanguageModel.

    window_length: most tokens that the model sees at once, more than one chunk; num_neighbors K; retriever: for live
    retrieval, None = none (requests that bring their evidence need `database` only); precision "bf16": matrix products
    in bfloat16; batch: requests that are decoded, or scored, side by side; policy: when to retrieve while generating,
    None = at the end of each chunk.
    A model without cross-attention is given no neighbors, whatever is set here.
    """

    def __init__(
        self,
        model: RetroModel,
        tokenizer: Tokenizer,
        *,
        window_length: int,
        num_neighbors: int = 0,
        retriever: Retriever | None = None,
        database: ChunkStore | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        batch: int = 8,
        policy: RetrievalPolicy | None = None,
        name: str = "",
    ) -> None:
        if tokenizer.vocab_size > (model.config.vocab_size or 0):
            raise ArtifactMismatchError(
                f"tokenizer: expected at most the model's {model.config.vocab_size} tokens, found "
                f"{tokenizer.vocab_size}"
            )
        positions = model.config.max_positions
        if positions is not None and window_length > positions:
            raise ConfigError(
                f"sequence_length: expected at most the model's {positions} learned positions, found {window_length}"
            )
        self.model, self.tokenizer = model.eval(), tokenizer
        self.window_length, self.num_neighbors = window_length, num_neighbors
        self.database = retriever.database if retriever is not None else database
        if self.database is not None:
            check_chunk_length(model, self.database)
        self.precision, self.batch, self.name = precision, batch, name
        self.policy: RetrievalPolicy = Every() if policy is None else policy
        self.device = next(model.parameters()).device
        self.is_retro = model.config.is_retro
        self.retriever = retriever if self.is_retro else None
        self._chunk = model.config.chunk_length
        # Special tokens that no text contains; the end of the text is a token like others. A tokenizer may use one id
        # for several of them. Ids beyond the tokenizer's (a padded vocabulary) mean nothing.
        specials = {tokenizer.bos_id, tokenizer.pad_id} - {tokenizer.eos_id}
        self.banned = sorted(specials) + list(range(tokenizer.vocab_size, model.config.vocab_size or 0))

    def identity(self) -> dict[str, Any]:
        """See LanguageModel."""
        return {
            "name": self.name,
            "tokenizer": self.tokenizer.fingerprint,
            "window_length": self.window_length,
            "num_neighbors": self.num_neighbors if self.retriever is not None else 0,
            "retriever": self.retriever.identity() if self.retriever is not None else None,
            "precision": self.precision,
        }

    def score_batch(self, batch: RetroBatch) -> np.ndarray:
        """See LanguageModel."""
        moved = batch.to_torch(self.device)
        with inference(self.device, self.precision):
            first = self._chunk if moved.chunk_ends_BL is None else None
            output = self.model(**moved.model_inputs, first_chunk_length=first)
        losses = output.token_losses_BN.float().cpu().numpy()
        return np.where(batch.loss_mask_BN, -losses, np.float32(np.nan)).astype(np.float32)

    def loglikelihood(self, requests: Sequence[ScoreRequest]) -> list[Score | None]:
        """See LanguageModel. Retrieval as in generation: the context ends a chunk, the continuation begins one."""
        return list(self._scorer().score([self._continuation_pieces(request) for request in requests]))

    def _continuation_pieces(self, request: ScoreRequest) -> list[ScoredPiece]:
        context, continuation = self.prompt_tokens(request.context), request.continuation
        answer = self.tokenizer.encode(continuation) if isinstance(continuation, str) else continuation
        return continuation_pieces(context, answer, self._chunk, self.window_length, request.first_chunk)

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[Score | None]:
        """See LanguageModel. A text is [bos] text [eos], cut into windows of whole chunks that do not overlap."""
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        tokens = [[bos, *self.tokenizer.encode(text), eos] for text in texts]
        return list(self._scorer().score([rolling_pieces(t, self._chunk, self.window_length) for t in tokens]))

    def _scorer(self) -> Scorer:
        pad = self.tokenizer.pad_id
        return Scorer(self.model, self.retriever, self.num_neighbors, pad, self.precision, self.batch)

    def generate_until(self, requests: Sequence[GenerateRequest]) -> list[Generated | None]:
        """See LanguageModel. `batch` requests are decoded side by side."""
        if not requests:
            return []
        if self.database is None and any(request.evidence and self.is_retro for request in requests):
            raise ConfigError("evidence: chunk ids need the database that they are in, found none")
        given = max(len(request.evidence or request.neighbors or ()) for request in requests)
        longest = max((len(tokens) for request in requests for tokens in request.neighbors or ()), default=0)
        prompts = [self.prompt_tokens(request.prompt) for request in requests]
        # Sequences of similar length side by side: little padding, and little to be masked in each step.
        order = sorted(range(len(requests)), key=lambda i: (-len(prompts[i]), -neighbor_tokens(requests[i]), i))
        room = max(len(prompts[i]) + requests[i].max_new_tokens for i in order)
        engine = self.build_engine(min(self.batch, len(requests)), given, longest, room)
        done = engine.run(
            EngineRequest(
                prompt=prompts[i],
                max_new_tokens=request.max_new_tokens,
                sampling=request.sampling,
                until=request.until,
                policy=self.policy if request.policy is None else request.policy,
                evidence=request.evidence if self.is_retro or request.evidence is None else (),
                neighbors=request.neighbors if self.is_retro or request.neighbors is None else (),
            )
            for i, request in ((i, requests[i]) for i in order)
        )
        results = dict(zip(order, (update.finished for update in done), strict=True))
        return [results[i] for i in range(len(requests))]

    def stream(self, request: EngineRequest) -> Iterator[Update]:
        """One request alone, token by token; the last update is the finished one."""
        longest = max((len(tokens) for tokens in request.neighbors or ()), default=0)
        engine = self.build_engine(1, len(request.evidence or request.neighbors or ()), longest)
        engine.submit(request)
        while engine.active or engine.waiting:
            yield from engine.step()

    def build_engine(
        self, slots: int, most_neighbors: int = 0, neighbor_length: int = 0, longest: int | None = None
    ) -> Engine:
        """An engine of this model and retriever. most_neighbors: the most that a request brings; neighbor_length: most
        tokens of one of them, if more than 2 M; longest: most tokens of a prompt and its continuation, where that is
        known: no room is made for more."""
        retrieved = self.num_neighbors if self.retriever is not None else 0
        return Engine(
            self.model,
            self.tokenizer,
            window_length=self.window_length if longest is None else self._room(longest),
            slots=slots,
            num_neighbors=max(retrieved, most_neighbors) if self.is_retro else 0,
            retrieved_neighbors=retrieved,
            neighbor_length=neighbor_length,
            retriever=self.retriever,
            database=self.database,
            banned=self.banned,
            precision=self.precision,
        )

    def _room(self, longest: int) -> int:
        """A window that never moves for sequences of so many tokens, or all of it if they have more."""
        return min(self.window_length, max(longest + 1, self._chunk + 1, 3))

    def prompt_tokens(self, prompt: str | tuple[int, ...]) -> tuple[int, ...]:
        """Token ids of a prompt: text with the begin-of-text token before it, ids as they are."""
        if isinstance(prompt, str):
            return (self.tokenizer.bos_id, *self.tokenizer.encode(prompt))
        return prompt


def neighbor_tokens(request: GenerateRequest) -> int:
    """How many tokens of neighbors a request brings."""
    return sum(map(len, request.neighbors or ()))


def check_chunk_length(model: RetroModel, chunks: ChunkStore) -> None:
    """Raise ArtifactMismatchError if a RETRO counts in other chunks: its neighbors would serve the wrong positions."""
    expected = model.config.chunk_length
    if model.config.is_retro and chunks.chunk_length != expected:
        raise ArtifactMismatchError(
            f"{chunks.folder}: expected chunks of {expected} tokens, as the model was trained with, found "
            f"{chunks.chunk_length}; use the release of that run, or one prepared with chunk.chunk_length={expected}"
        )
