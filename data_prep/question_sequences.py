"""Stage question_sequences: questions become sequences of chunks with neighbors, to fine-tune on and to be asked."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.search_inputs import open_reranker, search_inputs
from data_prep.stage import Shard, ShardResult, Stage
from retro.artifacts.manifest import open_manifest
from retro.config.evaluation import QuestionSequencesConfig
from retro.config.loader import to_dict
from retro.data.chunk_store import ChunkStore, open_chunk_store
from retro.data.question_dataset import QUESTION_SEQUENCES_KIND
from retro.data.questions import (
    QUESTION_SPLITS,
    QUESTIONS_KIND,
    Question,
    format_answer,
    format_prompt,
    open_questions,
    write_questions,
)
from retro.data.tokenizer import Tokenizer, open_tokenizer
from retro.retrieval.chunk_text import open_chunk_tokenizer
from retro.retrieval.retriever import Retriever
from retro.retrieval.searcher import open_searcher


class QuestionSequencesStage(Stage):
    """Inputs: questions; database: chunks; searcher, reranker: indexes of it.

    Files: see retro/data/question_dataset.py. The tokenizer is the database's. Questions that do not fit the layout
    (prompt longer than question_chunks, answer longer than a chunk) are left out and counted: they
    are the same ones for every model of this tokenizer.
    """

    name = "question_sequences"
    version = 1
    kind = QUESTION_SEQUENCES_KIND

    def __init__(
        self,
        config: QuestionSequencesConfig,
        questions: Path,
        database: Path,
        searcher: Path,
        reranker: Path | None = None,
        device: str = "auto",
        tokenizer: Path | None = None,
    ) -> None:
        """tokenizer: None = the database's own; another artifact of the same content, whose fingerprint the layout then
        names (a release whose database was prepared elsewhere)."""
        inputs = {"questions": questions, **search_inputs(config.rerank, database, searcher, reranker)}
        if tokenizer is not None:
            inputs["tokenizer"] = tokenizer
        super().__init__(to_dict(config), inputs)
        self.layout, self._device = config, device
        open_manifest(questions, QUESTIONS_KIND)

    @cached_property
    def _database(self) -> ChunkStore:
        return open_chunk_store(self.inputs["database"])

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        if "tokenizer" in self.inputs:
            return open_tokenizer(self.inputs["tokenizer"])
        return open_chunk_tokenizer(self.inputs["database"])

    @cached_property
    def _retriever(self) -> Retriever:
        searcher = open_searcher(self.inputs["searcher"], self._device)
        return Retriever(
            searcher, self._database, candidates=self.layout.candidates, reranker=open_reranker(self.inputs)
        )

    def plan(self) -> list[Shard]:
        """Ranges of the questions of each split."""
        shards = []
        for split in QUESTION_SPLITS:
            total = len(open_questions(self.inputs["questions"], split))
            for i, start in enumerate(range(0, max(total, 1), self.layout.shard_questions)):
                stop = min(start + self.layout.shard_questions, total)
                shards.append(Shard(f"{split}-{i:05d}", {"split": split, "start": start, "stop": stop}))
        return shards

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Lay the questions of one range out, and retrieve with their last chunks."""
        tokenizer, chunk = self._tokenizer, self._database.chunk_length
        asked = open_questions(self.inputs["questions"], shard.spec["split"])[shard.spec["start"] : shard.spec["stop"]]
        questions: list[Question] = []
        prompts: list[list[int]] = []
        answers: list[list[int]] = []
        for question in asked:
            prompt = [tokenizer.bos_id, *tokenizer.encode(format_prompt(question.question))]
            answer = [*tokenizer.encode(format_answer(question.answers[0])), tokenizer.eos_id]
            if len(prompt) <= self.layout.question_chunks * chunk and len(answer) <= chunk:
                questions.append(question)
                prompts.append(prompt)
                answers.append(answer)
        tokens = lay_out(prompts, answers, self.layout.question_chunks, chunk, tokenizer.pad_id)
        rows = [np.array(prompt[-chunk:], dtype=np.int64) for prompt in prompts]
        ids, distances = self._retriever.retrieve(rows, self.layout.keep)
        np.save(out / f"tokens-{shard.name}.npy", tokens)
        np.save(out / f"answer_lengths-{shard.name}.npy", np.array([len(a) for a in answers], dtype=np.int32))
        np.save(out / f"ids-{shard.name}.npy", ids)
        np.save(out / f"distances-{shard.name}.npy", distances)
        write_questions(out / f"questions-{shard.name}.jsonl", questions)
        return ShardResult(len(questions), {"too_long": len(asked) - len(questions)})

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """The layout, and how many questions did not fit."""
        return {
            "layout": {"chunk_length": self._database.chunk_length, "tokenizer": self._tokenizer.fingerprint},
            "too_long": sum(record["stats"]["too_long"] for record in records),
            "questions": {
                split: sum(record["rows"] for record in records if record["name"].startswith(f"{split}-"))
                for split in QUESTION_SPLITS
            },
        }

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """For people."""
        return f"{rows:,} questions laid out, {stats['too_long']:,} too long"


def lay_out(
    prompts: list[list[int]], answers: list[list[int]], question_chunks: int, chunk_length: int, pad_id: int
) -> np.ndarray:
    """int32 [n, (question_chunks + 1) * chunk_length]: prompts ending, answers beginning where the last chunk does."""
    border = question_chunks * chunk_length
    tokens = np.full((len(prompts), border + chunk_length), pad_id, dtype=np.int32)
    for row, prompt, answer in zip(tokens, prompts, answers, strict=True):
        row[border - len(prompt) : border] = prompt
        row[border : border + len(answer)] = answer
    return tokens
