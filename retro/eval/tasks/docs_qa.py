"""Short questions about documentation, decoded greedily: closed book, with retrieval, with others' neighbors.

A response row is one question in one mode:

    {"id", "mode", "question", "document", "document_split", "kind", "parameter", "answers", "prediction" (or None),
     "exact_match", "f1" (0..1 or None), "evidence" (line of the document), "retrieved" (database chunks that the model
     was given), "document_rank", "evidence_rank", "num_retrieved" (of the stored neighbors of the question),
     "guesses": {control: answer given without reading}}
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retro.data.chunk_store import ChunkStore
from retro.data.document import document_key
from retro.data.question_dataset import QuestionDataset, QuestionSequences
from retro.data.questions import Question, parse_answer
from retro.data.tokenizer import Tokenizer
from retro.eval.metrics.answers import common_answers, mean_scores, retrieval_recall, score_answer, scores_by
from retro.eval.metrics.bits_per_byte import Row
from retro.eval.tasks.base import Block
from retro.inference.language_model import GenerateRequest, LanguageModel

NAME = "docs_qa"
VERSION = 1
# The format is "question: ...\nanswer: ..."; an answer is one line.
_UNTIL = ("\n",)


class DocsQaTask:
    """Asks the test questions in blocks; every mode sees the same prompts, token by token."""

    name = NAME
    version = VERSION
    unit = "questions"

    def __init__(
        self,
        datasets: Mapping[str, QuestionDataset],
        train: Sequence[Question],
        database: ChunkStore,
        tokenizer: Tokenizer,
        *,
        max_questions: int | None = None,
        max_answer_tokens: int = 24,
        batch: int = 8,
        block_batches: int = 8,
    ) -> None:
        """datasets: by mode, over the same sequences; train: training questions, for guesses without reading."""
        self.datasets, self.database, self.tokenizer = dict(datasets), database, tokenizer
        self.sequences: QuestionSequences = next(iter(datasets.values())).sequences
        self.max_answer_tokens = max_answer_tokens
        self.units_per_block = batch * block_batches
        total = len(self.sequences)
        self.num_units = total if max_questions is None else min(max_questions, total)
        self.num_blocks = math.ceil(self.num_units / self.units_per_block)
        self._guess = common_answers(train)

    def identity(self) -> dict[str, Any]:
        """See Task."""
        return {
            "questions": self.sequences.fingerprint,
            "modes": list(self.datasets),
            "num_neighbors": {m: d.num_neighbors for m, d in self.datasets.items() if d.retrieval != "off"},
            "shuffle_seed": {m: d.seed for m, d in self.datasets.items() if d.retrieval == "shuffled"},
            "num_questions": self.num_units,
            "max_answer_tokens": self.max_answer_tokens,
            "block": self.units_per_block,
        }

    def run_block(self, number: int, model: LanguageModel, carry: Any) -> Block:
        """See Task. Nothing is carried over."""
        start = number * self.units_per_block
        stop = min(start + self.units_per_block, self.num_units)
        rows: list[dict[str, Any]] = []
        seconds: dict[str, float] = {}
        tokens: dict[str, int] = {}
        common = [self._common(i) for i in range(start, stop)]
        prompt = self.sequences.prompt_length
        for mode, dataset in self.datasets.items():
            evidence = [() if mode == "off" else _present(dataset.neighbor_ids[i]) for i in range(start, stop)]
            requests = [
                GenerateRequest(
                    prompt=tuple(self.sequences.tokens[i, :prompt].tolist()),
                    max_new_tokens=min(self.max_answer_tokens, self.sequences.chunk_length),
                    until=_UNTIL,
                    evidence=given,
                )
                for i, given in zip(range(start, stop), evidence, strict=True)
            ]
            begin = time.perf_counter()
            answers = model.generate_until(requests)
            seconds[mode] = time.perf_counter() - begin
            tokens[mode] = sum(len(answer.new_tokens) for answer in answers if answer is not None)
            for shared, given, answer in zip(common, evidence, answers, strict=True):
                prediction = None if answer is None else parse_answer(answer.text)
                scores = score_answer(prediction, shared["answers"])
                rows.append({**shared, "mode": mode, "prediction": prediction, **scores, "retrieved": list(given)})
        return Block(rows, None, seconds, tokens, stop - start)

    def _common(self, index: int) -> dict[str, Any]:
        """What the row of a question holds in every mode."""
        question = self.sequences.questions[index]
        ids = np.array(_present(self.sequences.neighbor_ids[index]), dtype=np.int64)
        own = self.database.document_keys(ids) == np.uint64(document_key(question.document))
        tokens, mask = self.database.gather_neighbors(ids, self.tokenizer.pad_id)
        wanted = statements(question)
        texts = [self.tokenizer.decode(row[real].tolist()) for row, real in zip(tokens, mask, strict=True)]
        stated = [bool(o) and any(text in found for text in wanted) for o, found in zip(own, texts, strict=True)]
        return {
            "id": question.id,
            "question": question.question,
            "document": question.document,
            "document_split": question.document_split,
            "kind": question.kind,
            "parameter": question.parameter,
            "answers": list(question.answers),
            "evidence": question.evidence,
            "document_rank": _rank(own.tolist()),
            "evidence_rank": _rank(stated),
            "num_retrieved": self.sequences.neighbor_ids.shape[1],
            "guesses": self._guess(question.kind, question.parameter),
        }


def statements(question: Question) -> list[str]:
    """Texts of which any states the answer, where it stands in the question's document."""
    found = [question.evidence]
    for answer in question.answers:
        if question.kind == "return_type":
            found.append(f") -> {answer}")
        elif question.parameter:
            found += [f"{question.parameter}={answer}", f"{question.parameter} = {answer}"]
    return found


def docs_qa_results(rows: Sequence[Row], modes: Sequence[str]) -> dict[str, Any]:
    """The figures of results.json that are a function of the rows alone.

    modes: exact match and F1 over all questions; by_kind, by_document_split: the same by part (the split tells whether
    the model was trained on the document as text); retrieval: recall of document and evidence; controls: answers given
    without reading.
    """
    by_mode = {mode: [row for row in rows if row["mode"] == mode] for mode in modes}
    once = by_mode[modes[0]]
    return {
        "modes": {mode: mean_scores(part) for mode, part in by_mode.items()},
        "by_kind": {mode: scores_by(part, "kind") for mode, part in by_mode.items()},
        "by_document_split": {mode: scores_by(part, "document_split") for mode, part in by_mode.items()},
        "retrieval": retrieval_recall(once),
        "controls": {
            name: mean_scores([score_answer(row["guesses"][name], row["answers"]) for row in once])
            for name in (once[0]["guesses"] if once else ())
        },
        "questions": len(once),
        "documents": len({row["document"] for row in once}),
    }


def _present(ids: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in ids if i >= 0)


def _rank(hits: Sequence[bool]) -> int | None:
    return next((i for i, hit in enumerate(hits) if hit), None)
