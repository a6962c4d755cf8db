"""Configuration of the stage build_index.

Every field below changes the result and is part of the fingerprint of the artifact, unless its description says
"speed only".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from retro.config.errors import ConfigError
from retro.config.sections import check_unused_sections


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


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
        _require(1 <= self.max_ngram <= 5, f"max_ngram: expected 1 to 5, found {self.max_ngram}")
        _require(self.k1 >= 0, f"k1: expected 0 or more, found {self.k1}")
        _require(0 <= self.b <= 1, f"b: expected 0 to 1, found {self.b}")
        _require(
            0 < self.max_document_frequency <= 1,
            f"max_document_frequency: expected above 0 and at most 1, found {self.max_document_frequency}",
        )
        # Postings are counted in 32 bits: 2^20 chunks with 2,000 terms each still fit.
        _require(1 <= self.shard_chunks <= 1 << 20, f"shard_chunks: expected 1 to 2^20, found {self.shard_chunks}")


@dataclass(frozen=True)
class VectorIndexConfig:
    """An index over embeddings.

    factory: "exact" (no faiss needed), or any faiss factory string ("Flat", "IVF1024,SQ8", "HNSW32", ...);
    train_sample: vectors drawn (by `seed`) to train it; probes, ef_search: search parameters of IVF and HNSW indexes,
    None = faiss' default; recall_queries, recall_at: recall@k against exact search is measured on so many vectors.
    """

    factory: str = "exact"
    train_sample: int = 262144
    seed: int = 0
    probes: int | None = None
    ef_search: int | None = None
    recall_queries: int = 512
    recall_at: int = 10

    def __post_init__(self) -> None:
        _require(self.factory != "", "factory: expected 'exact' or a faiss factory string, found an empty one")
        for name in ("train_sample", "recall_queries", "recall_at"):
            _require(getattr(self, name) >= 1, f"{name}: expected 1 or more, found {getattr(self, name)}")
        for name in ("probes", "ef_search"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name}: expected 1 or more, found {value}")
            _require(
                value is None or self.factory != "exact",
                f"{name} is not read by factory: exact; remove it or choose a faiss factory string",
            )


@dataclass(frozen=True)
class IndexConfig:
    """What is searched: BM25 over the chunks, or vectors. Filling in the section that is not used is an error."""

    kind: Literal["bm25", "vectors"] = "bm25"
    bm25: Bm25Config = field(default_factory=Bm25Config)
    vectors: VectorIndexConfig = field(default_factory=VectorIndexConfig)

    def __post_init__(self) -> None:
        check_unused_sections(self, "kind", ("bm25", "vectors"))
