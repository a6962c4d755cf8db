"""Configuration of the stage find_neighbors.

Every field below changes the result and is part of the fingerprint of the artifact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from retro.config.checks import require


@dataclass(frozen=True)
class NeighborsConfig:
    """Neighbors of every query chunk (Borgeaud et al. 2022, section 2.3).

    exclude: what a chunk never retrieves: chunks of its own document, or ("groups") of any document of the same group
    (a module of documentation, a site). Where held-out text is of groups that the database does not have, training
    neighbors found across groups are like the neighbors at test time, and training does not learn to lean on better
    ones. The other documents (groups) of a training sequence are excluded when the batch is made;
    candidates: fetched per query (more for the queries that are left with too few; reranking orders only these, so give
    it more: 200); keep: neighbors stored, more than training uses, so that some are left when a sequence excludes
    others; rerank: order the candidates by BM25 before the best are kept; max_overlap_tokens: drop candidates that
    share a longer run of tokens with the query chunk (None = none dropped); shard_chunks: query chunks per shard.
    """

    exclude: Literal["documents", "groups"] = "documents"
    candidates: int = 64
    keep: int = 20
    rerank: Literal["none", "bm25"] = "none"
    max_overlap_tokens: int | None = None
    shard_chunks: int = 8192

    RETIRED = {  # noqa: RUF012 - a constant, not a field: it has no annotation
        "sequence_chunks": "neighbors belong to chunks, and fit sequences of any length; remove it",
        "shard_sequences": "shards are counted in chunks; set shard_chunks instead",
    }

    def __post_init__(self) -> None:
        for name in ("keep", "shard_chunks"):
            require(getattr(self, name) >= 1, f"{name}: expected 1 or more, found {getattr(self, name)}")
        require(
            self.candidates >= self.keep,
            f"candidates: expected at least keep = {self.keep}, found {self.candidates}",
        )
        require(
            self.max_overlap_tokens is None or self.max_overlap_tokens >= 0,
            f"max_overlap_tokens: expected 0 or more, or null, found {self.max_overlap_tokens}",
        )
