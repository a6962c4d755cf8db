"""Configuration of the stages fit_embedder and embed.

Every field below changes the result and is part of the fingerprint of the artifact, unless its description says
"speed only".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from retro.config.checks import require
from retro.config.sections import check_unused_sections


@dataclass(frozen=True)
class LexicalConfig:
    """Tf-idf weighted words, hashed and randomly projected. Needs no download.

    dimension: of the vectors; max_ngram: terms are 1 to so many adjacent words; buckets: hash buckets of the document
    frequencies; signs: coordinates that each term is projected to, with random signs; seed: of the projection;
    fit_chunks: chunks that the document frequencies are counted on, spread evenly over the database (all of a smaller
    one), so that only these are detokenised twice.
    """

    dimension: int = 256
    max_ngram: int = 2
    buckets: int = 1 << 20
    signs: int = 8
    seed: int = 0
    fit_chunks: int = 1 << 20

    def __post_init__(self) -> None:
        require(self.dimension >= 8, f"dimension: expected 8 or more, found {self.dimension}")
        require(1 <= self.max_ngram <= 5, f"max_ngram: expected 1 to 5, found {self.max_ngram}")
        require(self.buckets >= 1024, f"buckets: expected 1024 or more, found {self.buckets}")
        require(
            1 <= self.signs <= self.dimension,
            f"signs: expected 1 to the dimension {self.dimension}, found {self.signs}",
        )
        require(self.seed >= 0, f"seed: expected 0 or more, found {self.seed}")
        # Counts of a shard are stored in 32 bits, and n * chunks must fit 63.
        require(1 <= self.fit_chunks <= 1 << 28, f"fit_chunks: expected 1 to 2^28, found {self.fit_chunks}")


@dataclass(frozen=True)
class TransformerConfig:
    """The last hidden states of an encoder, pooled.

    model: a local folder, a name in one of the folders that the environment variable RETRO_MODELS lists, or a name on
    the Hugging Face hub; revision: branch, tag or commit there; max_length: in the encoder's tokens, special ones
    included; pooling: "mean" over the real tokens without the special ones (Borgeaud et al. 2022, section 2.3),
    "mean_all" over these too (what most sentence encoders were trained with), "cls" the first position's;
    normalise: divide vectors by their L2 norm; metric: squared L2 distance or negated inner product;
    precision: of weights and arithmetic, auto = bf16 where the hardware has it, else fp32; batch_tokens: padded tokens
    per batch, 0 = what suits the device (it can change the last bits of a vector). auto and 0 are resolved once, when
    the embedder is fitted, and what they became is part of its recipe. device: auto, cpu, cuda or cuda:N; "auto" is
    cuda where there is one, and workers share out the GPUs unless a number is given (speed only).
    """

    model: str = ""
    revision: str | None = None
    max_length: int = 256
    pooling: Literal["mean", "mean_all", "cls"] = "mean"
    normalise: bool = False
    metric: Literal["l2", "ip"] = "l2"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    batch_tokens: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        require(self.max_length >= 3, f"max_length: expected 3 or more, found {self.max_length}")
        require(
            self.batch_tokens == 0 or self.batch_tokens >= self.max_length,
            f"batch_tokens: expected 0 or at least max_length {self.max_length}, found {self.batch_tokens}",
        )
        require(
            re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is not None,
            f"device: expected auto, cpu, cuda or cuda:N, found {self.device!r}",
        )


@dataclass(frozen=True)
class EmbedConfig:
    """How chunks become vectors. Filling in the section of the kind that is not used is an error.

    storage: type of the stored vectors; shard_chunks: chunks per shard; null: a 64th of all, at least 4,096 and at most
    32,768.
    """

    kind: Literal["lexical", "transformer"] = "lexical"
    lexical: LexicalConfig = field(default_factory=LexicalConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    storage: Literal["float32", "float16"] = "float32"
    shard_chunks: int | None = None

    def __post_init__(self) -> None:
        check_unused_sections(self, "kind", ("lexical", "transformer"))
        require(
            self.kind != "transformer" or self.transformer.model != "",
            "transformer.model is required: a local folder or a name on the Hugging Face hub",
        )
        require(
            self.shard_chunks is None or self.shard_chunks >= 1,
            f"shard_chunks: expected 1 or more, or null, found {self.shard_chunks}",
        )
