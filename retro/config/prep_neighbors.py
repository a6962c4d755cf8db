"""Configuration of the stage find_neighbors.

Every field below changes the result and is part of the fingerprint of the artifact, unless its description says
"speed only".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from retro.config.errors import ConfigError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class NeighborsConfig:
    """Neighbors of every query chunk (Borgeaud et al. 2022, section 2.3).

    sequence_chunks: L, chunks per sequence; every chunk of any document that the query's sequence touches is dropped;
    exclude: "groups" drops those of any document of the same group too (a module of documentation, a site). Where
    held-out text is of groups that the database does not have, training neighbors found across groups are like the
    neighbors at test time, and training does not learn to lean on better ones;
    candidates: fetched per query (doubled for the queries that are left with too few); keep: neighbors stored;
    rerank: order the candidates by BM25 before the best are kept; max_overlap_tokens: drop candidates that share a
    longer run of tokens with the query chunk (None = none dropped); shard_sequences: sequences per shard.
    """

    sequence_chunks: int = 8
    exclude: Literal["documents", "groups"] = "documents"
    candidates: int = 200
    keep: int = 20
    rerank: Literal["none", "bm25"] = "none"
    max_overlap_tokens: int | None = None
    shard_sequences: int = 1024

    def __post_init__(self) -> None:
        for name in ("sequence_chunks", "keep", "shard_sequences"):
            _require(getattr(self, name) >= 1, f"{name}: expected 1 or more, found {getattr(self, name)}")
        _require(
            self.candidates >= self.keep,
            f"candidates: expected at least keep = {self.keep}, found {self.candidates}",
        )
        _require(
            self.max_overlap_tokens is None or self.max_overlap_tokens >= 0,
            f"max_overlap_tokens: expected 0 or more, or null, found {self.max_overlap_tokens}",
        )
