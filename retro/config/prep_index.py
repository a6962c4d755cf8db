"""Configuration of the stages train_index and build_index.

Every field below changes the result and is part of the fingerprint of the artifact, unless its description says
"speed only".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from retro.config.checks import require
from retro.config.sections import check_unused_sections

# Vectors are encoded by blocks of so many rows, whatever the shards: the same calls, so the same bits.
ENCODE_BLOCK = 8192


@dataclass(frozen=True)
class Bm25Config:
    """BM25 (Robertson and Zaragoza 2009) as a retriever in its own right.

    terms: "words" of the chunk's text, or LM "tokens" (no detokenisation); max_ngram: terms are 1 to so many adjacent
    words or tokens; k1, b: saturation of the term frequency and length normalisation; max_document_frequency: terms in
    more than this share of the chunks are not searched for (0.1 is two to three times faster than 1 on a corpus of
    100,000 chunks, and nearly as good; on a tiny corpus it would leave nothing); shard_chunks: chunks per segment of
    the index.
    """

    terms: Literal["words", "tokens"] = "tokens"
    max_ngram: int = 2
    k1: float = 0.9
    b: float = 0.4
    max_document_frequency: float = 1.0
    shard_chunks: int = 262144

    def __post_init__(self) -> None:
        require(1 <= self.max_ngram <= 5, f"max_ngram: expected 1 to 5, found {self.max_ngram}")
        require(self.k1 >= 0, f"k1: expected 0 or more, found {self.k1}")
        require(0 <= self.b <= 1, f"b: expected 0 to 1, found {self.b}")
        require(
            0 < self.max_document_frequency <= 1,
            f"max_document_frequency: expected above 0 and at most 1, found {self.max_document_frequency}",
        )
        # Postings are counted in 32 bits: 2^20 chunks with 2,000 terms each still fit.
        require(1 <= self.shard_chunks <= 1 << 20, f"shard_chunks: expected 1 to 2^20, found {self.shard_chunks}")


@dataclass(frozen=True)
class VectorIndexConfig:
    """An index over embeddings (stages train_index and build_index).

    factory: "exact" (no faiss, nothing to train), "auto" (chosen by the number of vectors, their dimension and
    memory_budget_gb; the reason is printed and kept), or any faiss factory string ("IVF1024,SQ8", "HNSW32",
    "OPQ64_128,IVF4194304_HNSW32,PQ64", ...). `PQ16` is trained as `PQ16np`: polysemous codes take 30 times as long to
    train and nothing here reads them. memory_budget_gb: what `auto` may use for the index in a search; None = 8.

    train_sample: vectors drawn (by `seed`) to train it; None = 64 for each list, 65,536 to 4 million.
    probes, ef_search: search parameters of IVF and HNSW indexes (of an IVF index whose lists are found by a graph,
    ef_search is the graph's; None = twice the probes); k_factor: candidates looked at per neighbor wanted
    (the index compares codes; the exact distances of the candidates, computed from the embeddings, decide). None =
    measured when the index is built: the cheapest setting whose recall@`recall_at` on the sample is `recall_target`.

    recall_queries, recall_at: recall@k against exact search is measured on so many vectors, each without itself.
    shard_vectors: vectors encoded per shard, a multiple of 8192; merge: one part for all shards, or (False) each shard
    a part of its own, all of which are searched. device: cuda = train and search on the GPU, auto = where there is one
    (speed only).
    """

    factory: str = "exact"
    memory_budget_gb: float | None = None
    train_sample: int | None = None
    seed: int = 0
    probes: int | None = None
    ef_search: int | None = None
    k_factor: int | None = None
    recall_queries: int = 512
    recall_at: int = 10
    recall_target: float = 0.97
    shard_vectors: int = 262144
    merge: bool = True
    device: str = "auto"

    def __post_init__(self) -> None:
        require(self.factory != "", "factory: expected 'exact', 'auto' or a faiss factory string, found an empty one")
        for name in ("recall_queries", "recall_at"):
            require(getattr(self, name) >= 1, f"{name}: expected 1 or more, found {getattr(self, name)}")
        for name in ("train_sample", "probes", "ef_search", "k_factor"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}: expected 1 or more, found {value}")
        for name in ("probes", "ef_search", "k_factor", "train_sample"):
            require(
                getattr(self, name) is None or self.factory != "exact",
                f"{name} is not read by factory: exact; remove it or choose a faiss factory string",
            )
        require(
            self.memory_budget_gb is None or self.factory == "auto",
            f"memory_budget_gb is read by factory: auto only, found factory: {self.factory}; remove one of them",
        )
        require(
            self.memory_budget_gb is None or self.memory_budget_gb > 0,
            f"memory_budget_gb: expected above 0, found {self.memory_budget_gb}",
        )
        require(0 < self.recall_target <= 1, f"recall_target: expected above 0, at most 1, found {self.recall_target}")
        require(
            self.shard_vectors >= ENCODE_BLOCK and self.shard_vectors % ENCODE_BLOCK == 0,
            f"shard_vectors: expected a multiple of {ENCODE_BLOCK}, found {self.shard_vectors}",
        )
        require(self.device in ("auto", "cpu", "cuda"), f"device: expected auto, cpu or cuda, found {self.device!r}")


@dataclass(frozen=True)
class IndexConfig:
    """What is searched: BM25 over the chunks, or vectors. Filling in the section that is not used is an error."""

    kind: Literal["bm25", "vectors"] = "bm25"
    bm25: Bm25Config = field(default_factory=Bm25Config)
    vectors: VectorIndexConfig = field(default_factory=VectorIndexConfig)

    def __post_init__(self) -> None:
        check_unused_sections(self, "kind", ("bm25", "vectors"))
