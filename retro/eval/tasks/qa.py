"""Open-domain question answering, decoded greedily, in one or several arms.

A response row is one question in one arm (docs/qa.md has the fields). Scores are not in the rows: metrics are pure
functions of rows and task definition (`retro.eval.tasks.qa_results`), so that answers can be scored again without the
model.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from retro.config.loader import to_dict
from retro.config.qa import Arm, QaLayoutConfig
from retro.data.qa.answers import AnswerFinder
from retro.data.qa.evidence import choose_evidence
from retro.data.qa.examples import Example, QuestionTooLongError, build_example
from retro.data.qa.record import Passage, PreparedQuestion
from retro.data.qa.shots import ShotPool
from retro.data.qa.task import TaskDefinition, task_to_dict
from retro.data.tokenizer import Tokenizer
from retro.eval.metrics.qa_baselines import commonest_answers
from retro.eval.tasks.base import Block
from retro.eval.tasks.qa_arms import AdaptiveArm, EvaluatedArm
from retro.eval.tasks.qa_rows import answer_fields, answer_is_given, passage_fields, question_fields
from retro.inference.language_model import Generated, GenerateRequest, LanguageModel

NAME = "qa"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A question asked in one way. answer: None = the model gave none; seconds: in the model, for this question."""

    arm: Arm
    example: Example
    answer: Generated | None
    seconds: float


class QaTask:
    """Asks prepared questions in blocks: so many questions in one arm, then in the next, then the next questions."""

    name = NAME
    version = VERSION
    unit = "answers"

    def __init__(
        self,
        task: TaskDefinition,
        prepared: Sequence[PreparedQuestion],
        train: Sequence[PreparedQuestion],
        arms: Sequence[EvaluatedArm],
        tokenizer: Tokenizer,
        *,
        chunk_length: int,
        questions_fingerprint: str,
        layout: QaLayoutConfig,
        shots: int = 0,
        shot_seed: int = 0,
        max_questions: int | None = None,
        latency_questions: int = 0,
        seed: int = 0,
        batch: int = 8,
        block_batches: int = 8,
    ) -> None:
        """prepared: a whole split, of which the first max_questions are asked; train: for demonstrations and guesses;
        seed: of the passages in arms `random`; latency_questions: so many are also asked one at a time."""
        self.task, self.arms, self.tokenizer, self.layout = task, tuple(arms), tokenizer, layout
        self.chunk_length, self.questions_fingerprint = chunk_length, questions_fingerprint
        self.shots, self.shot_seed, self.seed = shots, shot_seed, seed
        self.units_per_block = batch * block_batches
        self.num_questions = len(prepared) if max_questions is None else min(max_questions, len(prepared))
        self.num_units = self.num_questions * len(self.arms)
        self.num_blocks = math.ceil(self.num_questions / self.units_per_block) * len(self.arms)
        self.latency_questions = min(latency_questions, self.num_questions)
        self.batch = batch
        self.max_new_tokens = min(layout.answer_tokens, task.max_new_tokens or layout.answer_tokens)
        self._prepared, self._train = prepared, train
        self._evidence: dict[Arm, list[tuple[Passage, ...]]] = {}
        # Of the questions of the last block, which the next arm is asked too.
        self._common: dict[int, tuple[dict[str, Any], AnswerFinder]] = {}

    @property
    def window_length(self) -> int:
        """Most tokens of a prompt and its answer, in whole chunks."""
        return (self.layout.prompt_chunks + math.ceil(self.max_new_tokens / self.chunk_length)) * self.chunk_length

    def identity(self) -> dict[str, Any]:
        """See Task."""
        return {
            "questions": self.questions_fingerprint,
            "num_questions": self.num_questions,
            "arms": [arm.name for arm in self.arms],
            "rules": {arm.name: arm.fingerprint for arm in self.arms if isinstance(arm, AdaptiveArm)},
            "layout": to_dict(self.layout),
            "shots": self.shots,
            "shots_seed": self.shot_seed if self.shots else None,
            "random_seed": self.seed if any(a.evidence == "random" for arm in self.arms for a in arm.asks) else None,
            "max_new_tokens": self.max_new_tokens,
            "latency_questions": self.latency_questions,
            # A matrix product may round differently in another batch.
            "batch": self.batch,
            "block": self.units_per_block,
            "task": task_to_dict(self.task),
            "metrics": list(self.task.metrics),
            "primary": self.task.primary,
            "guesses": self._guesses,
        }

    @cached_property
    def _guesses(self) -> dict[str, Any]:
        # A regular expression is no answer.
        texts = self.task.answers_are == "text"
        return commonest_answers(prepared.question for prepared in self._train) if texts else {}

    @cached_property
    def _pool(self) -> ShotPool:
        return ShotPool(self._train)

    def run_block(self, number: int, model: LanguageModel, carry: Any) -> Block:
        """See Task. Nothing is carried over."""
        part, place = divmod(number, len(self.arms))
        arm, start = self.arms[place], part * self.units_per_block
        indices = range(start, min(start + self.units_per_block, self.num_questions))
        if self._common.keys() != set(indices):
            self._common = {i: self._question(i) for i in indices}
        latencies = self._latencies(arm, [i for i in indices if i < self.latency_questions], model)
        begin = time.perf_counter()
        asked = self._ask(arm, indices, model)
        seconds = time.perf_counter() - begin
        rows = []
        for i, ways in zip(indices, asked, strict=True):
            fields, finder = self._common[i]
            rows.append({**fields, **self._row(i, arm, ways, finder), "latency_ms": latencies.get(i)})
        return Block(rows, None, {arm.name: seconds}, {arm.name: sum(row["new_tokens"] for row in rows)}, len(rows))

    def _question(self, index: int) -> tuple[dict[str, Any], AnswerFinder]:
        prepared = self._prepared[index]
        finder = AnswerFinder(prepared.question.answers, self.task.answers_are)
        return question_fields(prepared, finder), finder

    def _row(self, index: int, arm: EvaluatedArm, ways: Sequence[_Asked], finder: AnswerFinder) -> dict[str, Any]:
        """The fields of one arm. Costs are of all times that the question was asked, the answer is the last one."""
        last = ways[-1]
        prepared, evidence = self._prepared[index], self._evidence_of(last.arm)[index]
        given = answer_is_given(last.example, evidence, finder, prepared, self.task, self.tokenizer)
        return {
            "arm": arm.name,
            "arm_used": last.arm.name,
            **answer_fields(last.answer),
            "prompt_tokens": sum(len(asked.example.prompt) for asked in ways),
            "encoder_tokens": sum(_encoder_tokens(asked) for asked in ways),
            "new_tokens": sum(len(asked.answer.new_tokens) for asked in ways if asked.answer is not None),
            "seconds": round(sum(asked.seconds for asked in ways), 6),
            **passage_fields(last.example, evidence, given),
        }

    def _latencies(self, arm: EvaluatedArm, indices: Sequence[int], model: LanguageModel) -> dict[int, float]:
        """Milliseconds by question, asked one at a time; making its tokens is included."""
        found = {}
        for i in indices:
            if i == 0:  # What the first call sets up is not of this question.
                self._ask(arm, [i], model)
            begin = time.perf_counter()
            self._ask(arm, [i], model)
            found[i] = round(1000 * (time.perf_counter() - begin), 3)
        return found

    def _ask(self, arm: EvaluatedArm, indices: Sequence[int], model: LanguageModel) -> list[list[_Asked]]:
        """Per question the ways in which it was asked, one after the other."""
        if not isinstance(arm, AdaptiveArm):
            return [[asked] for asked in self._ask_in(dict.fromkeys(indices, arm.arm), model)]
        questions = {i: self._prepared[i].question for i in indices}
        if not arm.asks_first:
            chosen = {i: arm.retrieval if arm.retrieves(questions[i]) else arm.closed for i in indices}
            return [[asked] for asked in self._ask_in(chosen, model)]
        first = dict(zip(indices, self._ask_in(dict.fromkeys(indices, arm.closed), model), strict=True))
        unsure = [
            i
            for i, asked in first.items()
            if arm.retrieves(questions[i], asked.answer.token_logprobs if asked.answer is not None else None)
        ]
        second = dict(zip(unsure, self._ask_in(dict.fromkeys(unsure, arm.retrieval), model), strict=True))
        return [[first[i], second[i]] if i in second else [first[i]] for i in indices]

    def _ask_in(self, chosen: dict[int, Arm], model: LanguageModel) -> list[_Asked]:
        """Each question in the arm chosen for it, all at once. One that does not fit its prompt gets no answer."""
        examples = {i: self._example(i, arm) for i, arm in chosen.items()}
        fitting = {i: example for i, example in examples.items() if example is not None}
        requests = [
            GenerateRequest(
                prompt=example.prompt,
                max_new_tokens=self.max_new_tokens,
                until=tuple(self.task.until),
                neighbors=example.neighbors,
            )
            for example in fitting.values()
        ]
        begin = time.perf_counter()
        answers = dict(zip(fitting, model.generate_until(requests), strict=True))
        share = (time.perf_counter() - begin) / max(len(requests), 1)
        asked = []
        for i, arm in chosen.items():
            answer = answers.get(i)
            spent = 0.0 if i not in fitting else share if answer is None or not answer.seconds else answer.seconds
            asked.append(_Asked(arm, examples[i] or Example((), (), ()), answer, spent))
        return asked

    def _example(self, index: int, arm: Arm) -> Example | None:
        prepared = self._prepared[index]
        shots = self._pool.choose(prepared, self.shots, self.shot_seed) if self.shots else ()
        try:
            example = build_example(
                prepared,
                arm,
                self.layout,
                self.task,
                self.tokenizer,
                chunk_length=self.chunk_length,
                evidence=self._evidence_of(arm)[index],
                shots=shots,
            )
        except QuestionTooLongError:
            return None
        # Without cross-attention the neighbors are not read at all: the identity, not zeros through the encoder.
        kept = example.passages[: example.in_prompt]
        return example if arm.gate else dataclasses.replace(example, neighbors=(), passages=kept)

    def _evidence_of(self, arm: Arm) -> list[tuple[Passage, ...]]:
        """Of the whole split: whose passages a question gets in arms `random` does not depend on how many are asked."""
        if arm not in self._evidence:
            self._evidence[arm] = choose_evidence(
                self._prepared, arm, self.seed, answers_are=self.task.answers_are, number=self.layout.passages
            )
        return self._evidence[arm]


def _encoder_tokens(asked: _Asked) -> int:
    return sum(map(len, asked.example.neighbors))
