"""Configuration of `retro qa prepare`: from a task to questions with their passages.

Every field below changes the result and is part of the fingerprint of an artifact, unless its description says "speed
only".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from retro.config.checks import require, require_at_least
from retro.config.execution import ExecutorConfig
from retro.config.prep_embed import EmbedConfig
from retro.config.prep_index import VectorIndexConfig
from retro.config.qa_source import QaSourceConfig


@dataclass(frozen=True)
class QaBm25Config:
    """BM25 over the words of what a passage would say, not of its middle chunk alone.

    title: how often the title stands in the text of a chunk (0 = not at all); before, after: chunks of the document
    that are searched with a chunk; None = those of the passages. max_ngram: 1 to so many adjacent words are a term; k1,
    b, max_document_frequency, shard_chunks: see Bm25Config.
    """

    title: int = 2
    before: int | None = None
    after: int | None = None
    max_ngram: int = 1
    k1: float = 0.9
    b: float = 0.4
    max_document_frequency: float = 1.0
    shard_chunks: int = 262144

    def __post_init__(self) -> None:
        require_at_least(self, 0, "title", "before", "after")


@dataclass(frozen=True)
class QaRetrievalConfig:
    """How passages are found.

    method: "given" = they came with the questions, and no release is read; "release" = the release's own searcher;
    "bm25" = an index that is built of its chunks with their titles; "dense" = vectors: `embed` says of what kind, None
    = the release's own; "hybrid" = bm25 and dense together.
    candidates: chunks that each searcher finds for a question.
    fusion (hybrid): "reciprocal_rank" sums 1 / (rank_constant + rank) over the two (Cormack et al. 2009); "weighted"
    scores the candidates of either by both, scales each to 0..1, and adds them, the dense one times dense_weight, BM25
    times the rest (Bruch et al. 2023).
    rerank: the candidates ordered by another searcher's scores before the best are kept.
    bm25, embed, vectors: of the indexes that are built; vectors is read with embed only.
    """

    method: Literal["given", "release", "bm25", "dense", "hybrid"] = "bm25"
    candidates: int = 100
    bm25: QaBm25Config = field(default_factory=QaBm25Config)
    embed: EmbedConfig | None = None
    vectors: VectorIndexConfig = field(default_factory=VectorIndexConfig)
    fusion: Literal["reciprocal_rank", "weighted"] = "reciprocal_rank"
    rank_constant: int = 60
    dense_weight: float = 0.5
    rerank: Literal["none", "bm25", "dense"] = "none"

    def __post_init__(self) -> None:
        require_at_least(self, 1, "candidates", "rank_constant")
        require(0 < self.dense_weight < 1, f"dense_weight: expected between 0 and 1, found {self.dense_weight}")
        require(
            self.rerank == "none" or self.method != "given",
            "rerank: passages that came with the questions keep their order; remove it or choose another method",
        )
        require(
            self.rerank != self.method,
            f"rerank: {self.rerank} orders the candidates already; remove it or change method",
        )
        read = {
            "candidates": self.method != "given",
            "bm25": self.builds_bm25,
            "embed": self.uses_dense,
            "vectors": self.embed is not None,
            "fusion": self.method == "hybrid",
            "rank_constant": self.method == "hybrid" and self.fusion == "reciprocal_rank",
            "dense_weight": self.method == "hybrid" and self.fusion == "weighted",
        }
        defaults = {"candidates": 100, "fusion": "reciprocal_rank", "rank_constant": 60, "dense_weight": 0.5}
        defaults |= {"bm25": QaBm25Config(), "embed": None, "vectors": VectorIndexConfig()}  # type: ignore[dict-item]
        for name, used in read.items():
            require(
                used or getattr(self, name) == defaults[name],
                f"{name}: is not read by method {self.method!r}{'' if name != 'vectors' else ' without embed'}"
                f"{f' with fusion {self.fusion!r}' if self.method == 'hybrid' else ''}; remove it",
            )

    @property
    def builds_bm25(self) -> bool:
        """Whether an index of words is built."""
        return self.method in ("bm25", "hybrid") or self.rerank == "bm25"

    @property
    def uses_dense(self) -> bool:
        """Whether vectors are searched or scored."""
        return self.method in ("dense", "hybrid") or self.rerank == "dense"


@dataclass(frozen=True)
class QaPassagesConfig:
    """What of the found chunks is written.

    keep: passages of a question; before, after: chunks of the same document that a passage has around the one that was
    found (at an end of the document the other side gives more); max_chunks: a passage may grow to so many when another
    hit lies beside it, None = before + 1 + after. No chunk is written twice for one question. oracle: passages that
    hold the answer, kept besides.
    """

    keep: int = 20
    before: int = 1
    after: int = 1
    max_chunks: int | None = None
    oracle: int = 5

    def __post_init__(self) -> None:
        require_at_least(self, 1, "keep")
        require_at_least(self, 0, "before", "after", "oracle")
        require(
            self.max_chunks is None or self.max_chunks >= self.window,
            f"max_chunks: expected at least before + 1 + after = {self.window}, found {self.max_chunks}",
        )

    @property
    def window(self) -> int:
        """Chunks of a passage that nothing was added to."""
        return self.before + 1 + self.after

    @property
    def most_chunks(self) -> int:
        """Chunks of the longest passage."""
        return self.window if self.max_chunks is None else self.max_chunks


@dataclass(frozen=True)
class QaPrepareConfig:
    """`retro qa prepare CONFIG.yaml` (configs/qa/).

    root: folder of the artifacts and of questions.json; task: name (`retro qa tasks`) or YAML file; source: where its
    questions are read, by default where the task says; release: a release.json, whose database is searched (None: with
    method "given"); shard_questions: questions prepared at a time. workers, executor: as of `retro prep run`, device:
    of a transformer embedder; these three of speed only.
    """

    root: str
    task: str
    source: QaSourceConfig = field(default_factory=QaSourceConfig)
    release: str | None = None
    retrieval: QaRetrievalConfig = field(default_factory=QaRetrievalConfig)
    passages: QaPassagesConfig = field(default_factory=QaPassagesConfig)
    shard_questions: int = 512
    workers: int = 0
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    device: str = "auto"

    def __post_init__(self) -> None:
        require(self.root != "", "root: expected a folder for the artifacts, found none")
        require(self.task != "", "task: expected the name of a task (`retro qa tasks`) or a YAML file, found none")
        require_at_least(self, 1, "shard_questions")
        require_at_least(self, 0, "workers")
        retrieval, passages = self.retrieval, self.passages
        if retrieval.method == "given":
            require(
                self.release is None or self.source.release is not None,
                "release: passages that came with the questions are not searched for; remove it or change "
                "retrieval.method",
            )
            default = QaPassagesConfig()
            for name in ("before", "after", "max_chunks"):
                require(
                    getattr(passages, name) == getattr(default, name),
                    f"passages.{name}: passages that came with the questions stay as they are; remove it",
                )
            return
        require(
            self.release is not None,
            f"release: retrieval.method {retrieval.method!r} searches a database; expected a release.json, found none",
        )
        require(
            retrieval.candidates >= passages.keep,
            f"retrieval.candidates: expected at least passages.keep = {passages.keep}, found {retrieval.candidates}",
        )
