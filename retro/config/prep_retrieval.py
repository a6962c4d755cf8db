"""Configuration of the retrieval stages: embed, build_index, find_neighbors.

Every field below changes the result and is part of the fingerprint of the artifact, unless its description says
"speed only".
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from retro.config.errors import ConfigError
from retro.config.loader import to_dict


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class LexicalConfig:
    """Tf-idf weighted words, hashed and randomly projected. Needs no download.

    dimension: of the vectors; max_ngram: terms are 1 to so many adjacent words; buckets: hash buckets of the document
    frequencies; signs: coordinates that each term is projected to, with random signs; seed: of the projection.
    """

    dimension: int = 256
    max_ngram: int = 2
    buckets: int = 1 << 20
    signs: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.dimension >= 8, f"dimension: expected 8 or more, found {self.dimension}")
        _require(1 <= self.max_ngram <= 5, f"max_ngram: expected 1 to 5, found {self.max_ngram}")
        _require(self.buckets >= 1024, f"buckets: expected 1024 or more, found {self.buckets}")
        _require(
            1 <= self.signs <= self.dimension,
            f"signs: expected 1 to the dimension {self.dimension}, found {self.signs}",
        )
        _require(self.seed >= 0, f"seed: expected 0 or more, found {self.seed}")


@dataclass(frozen=True)
class TransformerConfig:
    """Mean of the last hidden states of an encoder over the real tokens without the special ones.

    Source: Borgeaud et al. 2022, section 2.3.

    model: a local folder or a name on the Hugging Face hub; revision: branch, tag or commit there; max_length: in the
    encoder's tokens, special ones included; normalise: divide vectors by their L2 norm; metric: squared L2 distance or
    negated inner product; precision: of weights and arithmetic; batch_tokens: padded tokens per batch (it can change
    the last bits of a vector); device: "auto" is cuda where there is one (speed only).
    """

    model: str = ""
    revision: str | None = None
    max_length: int = 256
    normalise: bool = False
    metric: Literal["l2", "ip"] = "l2"
    precision: Literal["fp32", "bf16"] = "fp32"
    batch_tokens: int = 16384
    device: str = "auto"

    def __post_init__(self) -> None:
        _require(self.max_length >= 3, f"max_length: expected 3 or more, found {self.max_length}")
        _require(
            self.batch_tokens >= self.max_length,
            f"batch_tokens: expected at least max_length {self.max_length}, found {self.batch_tokens}",
        )


@dataclass(frozen=True)
class EmbedConfig:
    """How chunks become vectors. Filling in the section of the kind that is not used is an error.

    storage: type of the stored vectors; shard_chunks: chunks per shard.
    """

    kind: Literal["lexical", "transformer"] = "lexical"
    lexical: LexicalConfig = field(default_factory=LexicalConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    storage: Literal["float32", "float16"] = "float32"
    shard_chunks: int = 32768

    def __post_init__(self) -> None:
        _unused(self, "kind", ("lexical", "transformer"))
        _require(
            self.kind != "transformer" or self.transformer.model != "",
            "transformer.model is required: a local folder or a name on the Hugging Face hub",
        )
        _require(self.shard_chunks >= 1, f"shard_chunks: expected 1 or more, found {self.shard_chunks}")


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
        _unused(self, "kind", ("bm25", "vectors"))


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


def result_fields(config: Any) -> dict[str, Any]:
    """The configuration as a dictionary without the sections that are not used and the fields of speed only."""
    values = dict(to_dict(config))
    for name in ("lexical", "transformer") if isinstance(config, EmbedConfig) else ():
        if name != config.kind:
            del values[name]
    for name in ("bm25", "vectors") if isinstance(config, IndexConfig) else ():
        if name != config.kind:
            del values[name]
    values.pop("device", None)
    if isinstance(values.get("transformer"), dict):
        values["transformer"] = {k: v for k, v in values["transformer"].items() if k != "device"}
    return values


def _unused(config: Any, chooser: str, sections: tuple[str, ...]) -> None:
    chosen = getattr(config, chooser)
    defaults = {f.name: f.default_factory for f in dataclasses.fields(config)}
    for name in sections:
        _require(
            name == chosen or getattr(config, name) == defaults[name](),  # type: ignore[operator,misc]
            f"section {name} is filled in, but {chooser} is {chosen!r}; set {chooser}={name} or remove the section",
        )
