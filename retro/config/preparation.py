"""Configuration of a whole preparation: from a corpus to a release."""

from __future__ import annotations

from dataclasses import dataclass, field

from retro.config.errors import ConfigError
from retro.config.evaluation import QuestionsConfig, QuestionSequencesConfig
from retro.config.execution import ExecutorConfig
from retro.config.prep import SPLIT_NAMES, DeduplicateConfig, IngestConfig
from retro.config.prep_embed import EmbedConfig
from retro.config.prep_index import IndexConfig
from retro.config.prep_neighbors import NeighborsConfig
from retro.config.prep_tokens import ChunkConfig, TokenizerConfig


@dataclass(frozen=True)
class PrepConfig:
    """`retro prep run CONFIG.yaml` (configs/prep/).

    root: folder of the artifacts; workers: shards at a time, 0 = one per core (of this machine; with executor.type=ray
    of the cluster) and executor: where they run, both of speed only; database_splits: splits whose chunks may be
    retrieved (never a held-out one); query_splits: splits that get neighbors (their chunks are trained or evaluated
    on); token_order_seed: of the shuffled document order; token_shard_bytes: stored documents per shard of tokens,
    null: by the size of the corpus; base: a release.json that the documents are added to (`retro prep add`): chunk,
    embed, index and deduplicate are then those of the base, neighbors too unless given, and tokenizer and questions
    stay out of the file; embed: null unless the index is over vectors; questions: a question set made from the same
    documentation (null: none).
    """

    root: str
    workers: int = 0
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    base: str | None = None
    ingest: IngestConfig = field(default_factory=IngestConfig)
    deduplicate: DeduplicateConfig | None = field(default_factory=DeduplicateConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    token_order_seed: int = 0
    token_shard_bytes: int | None = None
    chunk: ChunkConfig = field(default_factory=ChunkConfig)
    database_splits: tuple[str, ...] = ("train",)
    query_splits: tuple[str, ...] = ("train", "valid", "test")
    embed: EmbedConfig | None = None
    index: IndexConfig = field(default_factory=IndexConfig)
    neighbors: NeighborsConfig = field(default_factory=NeighborsConfig)
    questions: QuestionsConfig | None = None
    question_sequences: QuestionSequencesConfig = field(default_factory=QuestionSequencesConfig)

    def __post_init__(self) -> None:
        for name in ("database_splits", "query_splits"):
            splits = getattr(self, name)
            if not splits:
                raise ConfigError(f"{name}: expected at least one of {', '.join(SPLIT_NAMES)}, found none")
            for split in splits:
                if split not in SPLIT_NAMES:
                    raise ConfigError(f"{name}: expected some of {', '.join(SPLIT_NAMES)}, found {split!r}")
                if splits.count(split) > 1:
                    raise ConfigError(f"{name}: {split!r} is listed twice")
        for split in ("valid", "test"):
            if split in self.database_splits:
                raise ConfigError(
                    f"database_splits: {split} is held out, and must not be retrievable; expected train, "
                    "database_only or both"
                )
        if self.token_shard_bytes is not None and self.token_shard_bytes < 1:
            raise ConfigError(f"token_shard_bytes: expected 1 or more, or null, found {self.token_shard_bytes}")
        if self.workers < 0:
            raise ConfigError(f"workers: expected 0 (one per core) or more, found {self.workers}")
        if self.index.kind == "vectors" and self.embed is None:
            raise ConfigError("index.kind is 'vectors': add an embed section (kind: lexical or transformer)")
        if self.index.kind == "bm25" and self.embed is not None:
            raise ConfigError(
                "embed is filled in, but index.kind is 'bm25', which reads no vectors; remove one of them"
            )
