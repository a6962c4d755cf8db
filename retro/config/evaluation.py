"""Configuration of evaluation: scoring a checkpoint, question sets, search."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retro.config.checks import require as _require
from retro.config.checks import require_at_least as _at_least
from retro.config.qa import QaEvalConfig

Mode = Literal["on", "off", "shuffled"]


@dataclass(frozen=True)
class EvalConfig:
    """Evaluate one checkpoint with one task.

    checkpoint: a run folder (its newest checkpoint) or a checkpoint folder; release: a release.json, None = the run's;
    name: folder below the run's eval/, None = the task and its split; output: the folder that eval/ is made in, None =
    the run folder; modes: "on" as trained, "off" without cross-attention, "shuffled" with the neighbors of other
    chunks (a plain GPT has "off" only); num_neighbors, sequence_length: None = as trained; batch: sequences at a time;
    block_batches: batches between two commits of the responses; overwrite: discard an evaluation of something else
    that has the same name.

    perplexity only: split; max_sequences: the first so many sequences (None = all); overlap_neighbors: neighbors that
    r(C) looks at (Borgeaud et al. 2022, section 2.6); samples: test chunks written for the report's reader.
    docs_qa only: questions: folder of a question_sequences artifact, or its name in the release (None = the release has
    exactly one); max_questions: the first so many, which lie in a seeded random order (None = all);
    max_answer_tokens: longest answer that is decoded; database: another release.json, whose database the questions are
    asked with instead of the one that their stored neighbors are in (same tokenizer and chunk length; searched live).
    qa only: section qa (QaEvalConfig), which names the split and the arms instead of modes; seed: of the passages in
    arms `random`.
    """

    checkpoint: str
    task: Literal["perplexity", "docs_qa", "qa"]
    name: str | None = None
    output: str | None = None
    release: str | None = None
    database: str | None = None
    modes: tuple[Mode, ...] = ("on", "off", "shuffled")
    num_neighbors: int | None = None
    sequence_length: int | None = None
    batch: int = 8
    block_batches: int = 8
    seed: int = 0
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    overwrite: bool = False
    split: str = "test"
    max_sequences: int | None = None
    overlap_neighbors: int = 10
    samples: int = 12
    questions: str | None = None
    max_questions: int | None = None
    max_answer_tokens: int = 24
    qa: QaEvalConfig | None = None

    def __post_init__(self) -> None:
        _at_least(self, 1, "num_neighbors", "batch", "block_batches", "max_sequences", "max_questions")
        _at_least(self, 1, "sequence_length", "overlap_neighbors", "max_answer_tokens")
        _at_least(self, 0, "seed", "samples")
        _require(self.checkpoint != "", "checkpoint is required: a run folder or a checkpoint folder")
        _require(len(self.modes) > 0, "modes: expected at least one of on, off, shuffled")
        _require(len(set(self.modes)) == len(self.modes), f"modes: expected each once, found {list(self.modes)}")
        _require(
            self.database is None or self.task != "perplexity",
            "database: perplexity reads stored neighbors, which are of one database; make those of another with `retro "
            "prep swap --queries RELEASE --database OTHER --out FOLDER` and give release=FOLDER/release.json",
        )
        _require(
            self.qa is not None or self.task != "qa",
            "qa: task 'qa' needs this section; give qa.questions=FOLDER and qa.arms=[ARM, ...]",
        )
        foreign = [name for task, names in _FIELDS.items() if task != self.task for name in names]
        if self.task == "qa":
            foreign += _IN_LAYOUT
        instead = _INSTEAD if self.task == "qa" else {}
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in foreign:
            _require(
                getattr(self, name) == defaults[name],
                f"{name}: is not read by task {self.task!r}; {instead.get(name, 'remove it')}",
            )
        _require(
            self.name is None or (self.name not in ("", ".", "..") and "/" not in self.name),
            f"name: expected the name of a folder, found {self.name!r}",
        )

    @property
    def folder_name(self) -> str:
        """Name of the folder below eval/."""
        if self.name is not None:
            return self.name
        if self.qa is not None:
            return f"qa-{Path(self.qa.questions).resolve().name}-{self.qa.split}"
        return f"perplexity-{self.split}" if self.task == "perplexity" else self.task


# What only one task reads; all three read the others, but for those that are in the layout of questions.
_FIELDS = {
    "perplexity": ("split", "max_sequences", "overlap_neighbors", "samples"),
    "docs_qa": ("questions", "database", "max_questions", "max_answer_tokens"),
    "qa": ("qa",),
}
_IN_LAYOUT = ("modes", "num_neighbors", "sequence_length")
_INSTEAD = {
    "split": "give qa.split",
    "questions": "give qa.questions",
    "max_questions": "give qa.max_questions",
    "max_answer_tokens": "give qa.layout.answer_tokens",
    "modes": "give qa.arms",
    "num_neighbors": "give qa.layout.passages",
    "sequence_length": "give qa.layout.prompt_chunks",
}


@dataclass(frozen=True)
class SearchConfig:
    """Search the database of a release. k: chunks shown; device: of a transformer embedder.

    database: another release.json, whose database is searched with the tokenizer and the settings of the release.
    """

    release: str
    database: str | None = None
    query: str = ""
    k: int = 5
    device: str = "auto"

    def __post_init__(self) -> None:
        _at_least(self, 1, "k")
        _require(
            self.query.strip() != "", 'expected a query, e.g. retro search release=release.json "cosine similarity"'
        )


@dataclass(frozen=True)
class QuestionsConfig:
    """Make questions out of documentation: default values and return types that stand in the text.

    document_splits: documents of these splits are asked about (they must be in the database to be retrievable);
    test_fraction: share of those documents (by seeded hash of the id) whose questions are test questions;
    max_answer_characters: longer answers are left out; max_per_document: questions kept of one document;
    max_answer_share: no answer may make up more than this share of a kind in a split (else nearly all defaults are
    None); max_train, max_test: questions kept (None = all); seed: of all choices.
    """

    document_splits: tuple[Literal["train", "valid", "test", "database_only"], ...] = ("train", "database_only")
    test_fraction: float = 0.1
    max_answer_characters: int = 40
    max_per_document: int = 6
    max_answer_share: float = 0.15
    max_train: int | None = None
    max_test: int | None = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        _require(len(self.document_splits) > 0, "document_splits: expected at least one split")
        _require(0 < self.test_fraction < 1, f"test_fraction: expected between 0 and 1, found {self.test_fraction}")
        _require(
            0 < self.max_answer_share <= 1,
            f"max_answer_share: expected above 0 and at most 1, found {self.max_answer_share}",
        )
        _at_least(self, 1, "max_answer_characters", "max_per_document", "max_train", "max_test")
        _at_least(self, 0, "seed")


@dataclass(frozen=True)
class QuestionSequencesConfig:
    """Lay questions out as sequences of chunks, with neighbors.

    question_chunks: chunks for the question, which is left-padded to fill them (longer questions are left out and
    counted); candidates, keep, rerank: as for find_neighbors; shard_questions: questions per shard.
    """

    question_chunks: int = 1
    candidates: int = 200
    keep: int = 20
    rerank: Literal["none", "bm25"] = "none"
    shard_questions: int = 8192

    def __post_init__(self) -> None:
        _at_least(self, 1, "question_chunks", "keep", "shard_questions")
        _require(
            self.candidates >= self.keep,
            f"candidates: expected at least keep = {self.keep}, found {self.candidates}",
        )
