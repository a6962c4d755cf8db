"""What is served: a model with its engine, its tokenizer, and the texts of its database."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

from retro.data.chunk_store import ChunkStore
from retro.data.tokenizer import Tokenizer
from retro.inference.evidence import neighbor_texts
from retro.inference.language_model import ChunkEvidence, Retrieved
from retro.serving.completion_response import Neighbor
from retro.serving.engine_thread import BatchEngine

_CACHED_NEIGHBORS = 4096


@dataclasses.dataclass(frozen=True)
class GenerationOptions:
    """What one choice asks of the engine. Fields as in CompletionRequest, with its defaults; prompt: token ids;
    retrieve: None = as the server is set up; relation, popularity: of what the prompt asks about, for the server's
    policy; logprobs: alternatives per token, None = no log-probabilities."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int | None
    repetition_penalty: float
    seed: int
    stop: tuple[str, ...]
    retrieve: str | None
    num_neighbors: int | None
    logprobs: int | None
    relation: str | None = None
    popularity: float | None = None


@dataclasses.dataclass
class ServedModel:
    """name: what clients call it; chunk_length M; window_length: most tokens that the model sees at once;
    num_neighbors: most per chunk, 0 = it cannot retrieve; database: where neighbors are described from; build_engine: a
    fresh engine; make_request: the engine's request of a choice (ConfigError if it cannot be); slots: sequences that
    are decoded together; fingerprint: of the weights; policy: what the server's policy decides by ("popularity" or
    "confidence"), None = there is none.
    """

    name: str
    tokenizer: Tokenizer
    chunk_length: int
    window_length: int
    num_neighbors: int
    database: ChunkStore | None
    build_engine: Callable[[], BatchEngine]
    make_request: Callable[[GenerationOptions], Any]
    slots: int
    fingerprint: str = ""
    policy: str | None = None
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self._neighbor = functools.lru_cache(_CACHED_NEIGHBORS)(self._read_neighbor)

    @property
    def retrieves(self) -> bool:
        """Whether requests can have retrieval."""
        return self.num_neighbors > 0

    def encode(self, text: str) -> tuple[int, ...]:
        """A prompt's token ids, begin-of-text first."""
        return (self.tokenizer.bos_id, *self.tokenizer.encode(text))

    def describe(self, evidence: ChunkEvidence) -> list[Neighbor]:
        """Documents and texts of a retrieval's neighbors. Reads from disk; thread-safe."""
        return [self._with_distance(neighbor) for neighbor in evidence.neighbors]

    def _with_distance(self, neighbor: Retrieved) -> Neighbor:
        distance = neighbor.distance if math.isfinite(neighbor.distance) else None
        return self._neighbor(neighbor.chunk, neighbor.document).model_copy(update={"distance": distance})

    def _read_neighbor(self, chunk: int, document: str) -> Neighbor:
        import numpy as np

        assert self.database is not None
        text, continuation = neighbor_texts(self.database, self.tokenizer, chunk)
        number = int(self.database.documents(np.array([chunk]))[0])
        title = self.database.tokens.document_record(number)["title"]
        return Neighbor(
            document=document, title=title or None, chunk=chunk, distance=None, text=text, continuation=continuation
        )

    def describe_model(self, limits: Any) -> dict[str, Any]:
        """Entry of GET /v1/models: OpenAI's fields, and under `retro` what a client may ask for."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "retro",
            "retro": {
                "chunk_length": self.chunk_length,
                "window_length": self.window_length,
                "num_neighbors": self.num_neighbors,
                "retrieval": self.retrieves,
                "policy": self.policy,
                "max_tokens": limits.max_tokens,
                "max_prompt_tokens": limits.max_prompt_tokens or self.window_length,
                "max_choices": limits.max_choices,
                "weights": self.fingerprint,
            },
        }
