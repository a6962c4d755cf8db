"""Configuration of the stages from documents to chunks: train_tokenizer, tokenize, chunk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from retro.config.checks import require
from retro.config.prep import SPLIT_NAMES

# 256 bytes, padding, begin, end, unknown, newline and tab; the characters of the text come on top.
SMALLEST_VOCABULARY = 262


def _check_splits(splits: tuple[str, ...]) -> None:
    require(len(splits) > 0, f"splits: expected at least one of {', '.join(SPLIT_NAMES)}, found none")
    for split in splits:
        require(split in SPLIT_NAMES, f"splits: expected some of {', '.join(SPLIT_NAMES)}, found {split!r}")
        require(splits.count(split) == 1, f"splits: {split!r} is listed twice")


@dataclass(frozen=True)
class SentencePieceConfig:
    """Train a lossless sentencepiece model: what it encodes decodes to the same text, whatever the text.

    vocab_size: pieces including 256 bytes and the special tokens; max_characters: of a sample of whole documents drawn
    by a hash of (seed, document id) from `splits`; character_coverage: share of the sample's characters that get a
    piece of their own, the others are spelled in bytes; split_digits: every digit is a piece.
    """

    vocab_size: int = 4096
    model_type: Literal["bpe", "unigram"] = "bpe"
    max_characters: int = 5_000_000
    splits: tuple[str, ...] = ("train",)
    seed: int = 0
    character_coverage: float = 0.9999
    split_digits: bool = True

    def __post_init__(self) -> None:
        _check_splits(self.splits)
        require(
            self.vocab_size >= SMALLEST_VOCABULARY,
            f"vocab_size: expected {SMALLEST_VOCABULARY} or more (bytes and special tokens), found {self.vocab_size}",
        )
        require(self.max_characters >= 1, f"max_characters: expected 1 or more, found {self.max_characters}")
        require(
            0.98 <= self.character_coverage <= 1,
            f"character_coverage: expected 0.98 to 1, found {self.character_coverage}",
        )


@dataclass(frozen=True)
class ExistingTokenizerConfig:
    """Take a tokenizer that exists.

    path: for kind sentencepiece a model file, or a folder with tokenizer.model; for kind huggingface a folder with
    tokenizer.json, such a file, or a name on the hub (revision: branch, tag or commit there). A pretrained model's
    folder is such a folder. *_token: the special tokens where the tokenizer does not name
    them itself; begin and end stand in for each other, and end for padding, where only one of them exists.
    """

    path: str = ""
    revision: str | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None


@dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer. Filling in the section that the kind does not read is an error."""

    kind: Literal["train", "sentencepiece", "huggingface"] = "train"
    train: SentencePieceConfig = field(default_factory=SentencePieceConfig)
    existing: ExistingTokenizerConfig = field(default_factory=ExistingTokenizerConfig)

    def __post_init__(self) -> None:
        unread = "existing" if self.kind == "train" else "train"
        section = getattr(self, unread)
        require(
            section == type(section)(),
            f"section {unread} is filled in, but kind is {self.kind!r}; set kind or remove the section",
        )
        require(
            self.kind == "train" or self.existing.path != "",
            f"existing.path is required for kind {self.kind!r}: the file, folder or hub name of the tokenizer",
        )
        require(
            self.kind != "sentencepiece" or self.existing.revision is None,
            "existing.revision is read for names on the Hugging Face hub only; remove it",
        )


@dataclass(frozen=True)
class TokensConfig:
    """Documents of `splits` to tokens. seed: of the shuffled document order; shard_bytes: of the documents (as stored,
    compressed) that make a shard, about; null: a 64th of all, at least 1 MiB and at most 256 MiB."""

    splits: tuple[str, ...] = ("train",)
    seed: int = 0
    shard_bytes: int | None = None

    def __post_init__(self) -> None:
        _check_splits(self.splits)
        _check_positive("shard_bytes", self.shard_bytes)


@dataclass(frozen=True)
class ChunkConfig:
    """Cut documents into chunks. chunk_length: M tokens; shard_documents: documents per shard; null: a 64th of all, at
    least 4,096 and at most 1,048,576."""

    chunk_length: int = 64
    shard_documents: int | None = None

    def __post_init__(self) -> None:
        for name in ("chunk_length", "shard_documents"):
            _check_positive(name, getattr(self, name))


def _check_positive(name: str, value: int | None) -> None:
    require(value is None or value >= 1, f"{name}: expected 1 or more, found {value}")
