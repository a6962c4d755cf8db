"""Configuration of the stages fit_embedder and embed.

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
        check_unused_sections(self, "kind", ("lexical", "transformer"))
        _require(
            self.kind != "transformer" or self.transformer.model != "",
            "transformer.model is required: a local folder or a name on the Hugging Face hub",
        )
        _require(self.shard_chunks >= 1, f"shard_chunks: expected 1 or more, found {self.shard_chunks}")
