"""What is to be prepared, as far as its cost depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from retro.config.errors import ConfigError
from retro.config.preparation import PrepConfig


@dataclass(frozen=True)
class Workload:
    """What is to be prepared.

    tokens: of the corpus; held_out: share of them that is not in the database; query_tokens: tokens whose chunks get
    neighbors (None: all of the database's); chunk_length M; token_bytes: 2 or 4; dimension and storage of the
    embeddings, embedder: of which rates; factory: exact, auto, bm25 or a faiss factory string; probes: lists looked at
    per query and ef_search of a graph (None: a 1024th of the lists, at least 8, as nprobe 4096 of 2^22 lists in
    InstructRetro; 64); train_sample: vectors (None: as the stage train_index chooses); keep: neighbors stored per
    chunk; deduplicate: None, or the permutations of its MinHash (0: exact duplicates only); *_shard: rows per shard.
    """

    tokens: float
    held_out: float = 0.01
    query_tokens: float | None = None
    chunk_length: int = 64
    token_bytes: int = 2
    dimension: int = 1024
    storage: Literal["float16", "float32"] = "float16"
    embedder: Literal["transformer", "lexical"] = "transformer"
    factory: str = "auto"
    memory_budget_gb: float | None = None
    probes: int | None = None
    ef_search: int | None = None
    train_sample: float | None = None
    keep: int = 20
    deduplicate: int | None = 128
    embed_shard: int = 32768
    index_shard: int = 262144
    neighbor_shard: int = 8192

    def __post_init__(self) -> None:
        for name in ("tokens", "chunk_length", "dimension", "keep", "embed_shard", "index_shard", "neighbor_shard"):
            value = getattr(self, name)
            if not 1 <= value < float("inf"):
                raise ConfigError(f"{name}: expected 1 or more, found {value}")
        for name in ("query_tokens", "probes", "ef_search", "train_sample"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < float("inf"):
                raise ConfigError(f"{name}: expected 1 or more, found {value}")
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"held_out: expected 0 to 1, found {self.held_out}")
        if self.token_bytes not in (2, 4):
            raise ConfigError(f"token_bytes: expected 2 or 4, found {self.token_bytes}")
        if self.deduplicate is not None and self.deduplicate < 0:
            raise ConfigError(f"deduplicate: expected the permutations (0 or more) or none, found {self.deduplicate}")


def workload_of(config: PrepConfig, **known: Any) -> Workload:
    """What a preparation's configuration decides; `known` are further fields: tokens, and the dimension of a model."""
    values: dict[str, Any] = {
        "chunk_length": config.chunk.chunk_length,
        "keep": config.neighbors.keep,
        "neighbor_shard": config.neighbors.shard_chunks,
        "deduplicate": None,
        "factory": "bm25",
    }
    if config.deduplicate is not None:
        values["deduplicate"] = config.deduplicate.permutations if config.deduplicate.near else 0
    if config.tokenizer.kind == "train":
        values["token_bytes"] = 2 if config.tokenizer.train.vocab_size < 1 << 16 else 4
    if config.embed is not None:
        values |= {"storage": config.embed.storage, "embed_shard": config.embed.shard_chunks or Workload.embed_shard}
        values["embedder"] = config.embed.kind
        if config.embed.kind == "lexical":
            values["dimension"] = config.embed.lexical.dimension
        vectors = config.index.vectors
        values |= {
            "factory": vectors.factory,
            "probes": vectors.probes,
            "ef_search": vectors.ef_search,
            "train_sample": vectors.train_sample,
            "memory_budget_gb": vectors.memory_budget_gb,
            "index_shard": vectors.shard_vectors,
        }
    return Workload(**{**values, **known})
