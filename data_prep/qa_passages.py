"""Stage qa_passages: questions with their passages written out, and how often these hold what they should."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.embed import gpus_of_embedder
from data_prep.stage import Shard, ShardResult, Stage
from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactMismatchError, ConfigError
from retro.config.qa_prepare import QaPassagesConfig, QaRetrievalConfig
from retro.data.chunk_store import ChunkStore, open_chunk_store
from retro.data.document import document_key
from retro.data.qa.answers import AnswerFinder
from retro.data.qa.prepared import QA_PASSAGES_KIND, write_prepared
from retro.data.qa.question_file import SourceQuestion, SourceQuestions, open_source_questions
from retro.data.qa.recall import RecallCounts, evidence_rank, recall_figures
from retro.data.qa.record import PreparedQuestion
from retro.data.qa.task import TaskDefinition, task_to_dict
from retro.data.token_store import open_token_store
from retro.data.tokenizer import Tokenizer
from retro.retrieval.bm25 import BM25Searcher
from retro.retrieval.chunk_text import CHUNKS_KIND, open_chunk_tokenizer
from retro.retrieval.hybrid import HybridSearcher
from retro.retrieval.passages import PassageMaker, Window
from retro.retrieval.retriever import Retriever
from retro.retrieval.searcher import Scorer, Searcher, open_searcher, searched_chunks
from retro.retrieval.vector_searcher import open_vector_searcher

# Passages that are looked through at a time for one that holds the answer.
_LOOKED_AT = 10
_INDEXES = ("searcher", "bm25", "dense")


class QaPassagesStage(Stage):
    """Inputs: questions; where passages are searched for: database (chunks), the indexes of it that the method reads
    (searcher = the release's own, bm25, dense), training (tokens that the language models are trained on, if known).

    Files: retro/data/qa/prepared.py. A question is searched for by its text. Oracle passages are of the documents that
    the question names as evidence, or, where it names none, of any that were found; all of them hold the answer.
    """

    name = "qa_passages"
    version = 1
    kind = QA_PASSAGES_KIND

    def __init__(
        self,
        retrieval: QaRetrievalConfig,
        passages: QaPassagesConfig,
        inputs: dict[str, Path],
        *,
        shard_questions: int = 512,
        release: str | None = None,
        device: str = "auto",
    ) -> None:
        """inputs: as above, by name; release: its fingerprint. Raises ConfigError and ArtifactMismatchError for inputs
        that do not fit the method or each other."""
        config: dict[str, Any] = {
            "method": retrieval.method,
            "keep": passages.keep,
            "oracle": passages.oracle,
            "shard_questions": shard_questions,
        }
        if retrieval.method != "given":
            config |= {
                "candidates": retrieval.candidates,
                "rerank": retrieval.rerank,
                "before": passages.before,
                "after": passages.after,
                "max_chunks": passages.most_chunks,
                "release": release,
            }
        if retrieval.method == "hybrid":
            config["fusion"] = retrieval.fusion
            weighted = retrieval.fusion == "weighted"
            name = "dense_weight" if weighted else "rank_constant"
            config[name] = getattr(retrieval, name)
        super().__init__(config, inputs)
        self._retrieval, self._passages, self._device, self._release = retrieval, passages, device, release
        self._check_inputs()

    def _check_inputs(self) -> None:
        wanted = set()
        if self._retrieval.method != "given":
            wanted.add("database")
            wanted |= {name for name, used in zip(_INDEXES, self._uses, strict=True) if used}
        found = set(self.inputs) - {"questions", "training"}
        if found != wanted:
            raise ConfigError(
                f"method {self._retrieval.method}: expected inputs {sorted(wanted)}, found {sorted(found)}"
            )
        for name in _INDEXES:
            if name not in self.inputs:
                continue
            expected = open_manifest(self.inputs["database"], CHUNKS_KIND).fingerprint
            made_of = open_manifest(searched_chunks(self.inputs[name])).fingerprint
            if made_of != expected:
                raise ArtifactMismatchError(
                    f"{self.inputs[name]}: expected an index of the database {expected}, found one of {made_of}; "
                    "build the index of this database"
                )

    @property
    def _uses(self) -> tuple[bool, bool, bool]:
        return self._retrieval.method == "release", self._retrieval.builds_bm25, self._retrieval.uses_dense

    @cached_property
    def _questions(self) -> SourceQuestions:
        return open_source_questions(self.inputs["questions"])

    @cached_property
    def _task(self) -> TaskDefinition:
        return self._questions.task

    @cached_property
    def _database(self) -> ChunkStore:
        return open_chunk_store(self.inputs["database"])

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return open_chunk_tokenizer(self.inputs["database"])

    @cached_property
    def _maker(self) -> PassageMaker:
        return PassageMaker(self._database, self._tokenizer, self._passages)

    @cached_property
    def _retriever(self) -> Retriever:
        options = self._retrieval
        bm25 = BM25Searcher(self.inputs["bm25"]) if "bm25" in self.inputs else None
        dense = open_vector_searcher(self.inputs["dense"], self._device) if "dense" in self.inputs else None
        searcher: Searcher | None
        if options.method == "hybrid":
            assert bm25 is not None and dense is not None
            weights = (1.0, 1.0)
            if options.fusion == "weighted":
                weights = (1.0 - options.dense_weight, options.dense_weight)
            searcher = HybridSearcher(
                [bm25, dense],
                depth=options.candidates,
                weights=weights,
                fusion=options.fusion,
                constant=options.rank_constant,
            )
        elif options.method == "release":
            searcher = open_searcher(self.inputs["searcher"], self._device)
        else:
            searcher = bm25 if options.method == "bm25" else dense
        assert searcher is not None
        reranker: Scorer | None = {"none": None, "bm25": bm25, "dense": dense}[options.rerank]
        return Retriever(searcher, self._database, candidates=options.candidates, reranker=reranker)

    @cached_property
    def _trained(self) -> np.ndarray | None:
        """Keys of the documents that language models are trained on, ascending; None = unknown."""
        if "training" not in self.inputs:
            return None
        return np.sort(np.asarray(open_token_store(self.inputs["training"]).document_keys[:], dtype=np.uint64))

    @property
    def gpus(self) -> int:
        """GPUs that a worker is to be given: queries are embedded there where there is one."""
        for name in ("dense", "searcher"):
            if name in self.inputs and open_manifest(self.inputs[name]).config.get("kind") == "vectors":
                return gpus_of_embedder("transformer", self._device)
        return 0

    def plan(self) -> list[Shard]:
        """Ranges of the questions of each split."""
        size, shards = int(self.config["shard_questions"]), []
        for split in self._questions.splits:
            total = self._questions.count(split)
            for i, start in enumerate(range(0, max(total, 1), size)):
                spec = {"split": split, "start": start, "stop": min(start + size, total)}
                shards.append(Shard(f"{split}-{i:05d}", spec))
        return shards

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Find the passages of one range of questions."""
        asked = self._read(shard.spec["split"], shard.spec["start"], shard.spec["stop"])
        counts, prepared = RecallCounts(), []
        find = self._given if self._retrieval.method == "given" else self._search
        for question, answer in find(asked):
            prepared.append(question)
            counts.add(question, evidence_rank(question.question, question.passages), answer)
        write_prepared(out / f"prepared-{shard.name}.jsonl", prepared)
        return ShardResult(len(prepared), {"recall": counts.counts()})

    def _read(self, split: str, start: int, stop: int) -> list[SourceQuestion]:
        found = []
        for number, question in enumerate(self._questions.iter(split)):
            if number >= stop:
                break
            if number >= start:
                found.append(question)
        return found

    def _given(self, asked: list[SourceQuestion]) -> list[tuple[PreparedQuestion, int | None]]:
        result = []
        for item in asked:
            question, finder = item.question, self._finder(item)
            holds = [finder.found_in(passage.text) for passage in item.passages]
            named = set(question.evidence)
            oracle = [
                passage
                for passage, held in zip(item.passages, holds, strict=True)
                if held and (not named or passage.document in named)
            ]
            kept = item.passages[: self._passages.keep]
            rank = next((i for i, held in enumerate(holds[: len(kept)]) if held), None)
            result.append((PreparedQuestion(question, kept, tuple(oracle[: self._passages.oracle]), None), rank))
        return result

    def _search(self, asked: list[SourceQuestion]) -> list[tuple[PreparedQuestion, int | None]]:
        rows = [np.array(self._tokenizer.encode(item.question.question), dtype=np.int64) for item in asked]
        ids, distances = self._retriever.retrieve(rows, self._retrieval.candidates)
        kept = [self._maker.windows(*found, self._passages.keep) for found in zip(ids, distances, strict=True)]
        texts = iter(self._maker.texts([window for windows in kept for window in windows]))
        result = []
        for number, (item, windows) in enumerate(zip(asked, kept, strict=True)):
            own = [next(texts) for _ in windows]
            finder = self._finder(item)
            oracle: tuple[list[Window], list[str]] = ([], [])
            if self._passages.oracle:
                found = self._maker.windows(ids[number], distances[number])
                oracle = self._oracle(item, found, finder)
            passages = self._maker.passages(windows, own)
            prepared = PreparedQuestion(item.question, passages, self._maker.passages(*oracle), self._seen(item))
            result.append((prepared, finder.first_in(own)))
        return result

    def _oracle(
        self, item: SourceQuestion, windows: list[Window], finder: AnswerFinder
    ) -> tuple[list[Window], list[str]]:
        """The first windows that hold the answer: of the documents named as evidence, or else of those that were found,
        with their texts."""
        if item.question.evidence:
            windows = self._maker.document_windows(item.question.evidence, windows)
        found: list[Window] = []
        held: list[str] = []
        for start in range(0, len(windows), _LOOKED_AT):
            part = windows[start : start + _LOOKED_AT]
            for window, text in zip(part, self._maker.texts(part), strict=True):
                if finder.found_in(text):
                    found.append(window)
                    held.append(text)
            if len(found) >= self._passages.oracle:
                break
        return found[: self._passages.oracle], held[: self._passages.oracle]

    def _finder(self, item: SourceQuestion) -> AnswerFinder:
        try:
            return AnswerFinder(item.question.answers, self._task.answers_are)
        except ValueError as error:
            raise ConfigError(f"question {item.question.id}: {error}; correct the answer in the source") from None

    def _seen(self, item: SourceQuestion) -> bool | None:
        if self._trained is None or not item.question.evidence:
            return None
        keys = np.array([document_key(document) for document in item.question.evidence], dtype=np.uint64)
        place = np.minimum(np.searchsorted(self._trained, keys), max(len(self._trained) - 1, 0))
        return bool(len(self._trained) and (self._trained[place] == keys).any())

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """The task, the retrieval, and per split the recall."""
        identity = {} if self._retrieval.method == "given" else {"retriever": self._retriever.identity()}
        options = {name: value for name, value in self.config.items() if name not in ("shard_questions", "release")}
        splits = []
        for split in self._questions.splits:
            own = [record for record in records if record["name"].rpartition("-")[0] == split]
            splits.append(
                {
                    "split": split,
                    "questions": sum(record["rows"] for record in own),
                    "recall": recall_figures(record["stats"]["recall"] for record in own),
                }
            )
        return {
            "task": task_to_dict(self._task),
            "release": self._release,
            "retrieval": options | identity,
            "splits": splits,
        }

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """For people."""
        return f"{rows:,} questions with passages ({self._retrieval.method})"
