"""Prepared questions as training sequences of one arm, made when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retro.config.errors import ArtifactMismatchError
from retro.config.qa import Arm, QaLayoutConfig
from retro.data.batch import RetroBatch
from retro.data.qa.examples import bare_prompt_lengths, build_example, tokenize_answers
from retro.data.qa.layout import pad_neighbors, pad_questions
from retro.data.qa.record import PreparedQuestion
from retro.data.qa.task import TaskDefinition
from retro.data.tokenizer import Tokenizer

# Tokens of examples that are kept, so that later epochs need not make them again: 512 MiB.
_MOST_KEPT = 1 << 27


class LeftOut(NamedTuple):
    """Questions that are not trained on: those longer than the prompt may be, those whose answer is longer than
    answer_tokens or a chunk, and those without an answer to train on (expressions)."""

    too_long: int = 0
    long_answer: int = 0
    no_answer: int = 0


class _Row(NamedTuple):
    prompt: np.ndarray
    neighbors: tuple[np.ndarray, ...]
    answer: np.ndarray

    @property
    def size(self) -> int:
        return len(self.prompt) + len(self.answer) + sum(map(len, self.neighbors))


class QaDataset:
    """Questions with the loss on the answer and its end, with the interface of RetroDataset.

    A batch is as wide as its longest question, and has as many and as long neighbors as its questions bring
    (retro/data/qa/layout.py). questions: those that fit; left_out: how many do not; length_multiple: of which batches'
    widths are multiples.
    """

    def __init__(
        self,
        prepared: Sequence[PreparedQuestion],
        arm: Arm,
        layout: QaLayoutConfig,
        task: TaskDefinition,
        tokenizer: Tokenizer,
        chunk_length: int,
        *,
        where: str = "questions",
        length_multiple: int = 1,
    ) -> None:
        """Raises ArtifactMismatchError, naming `where`, if no question is left to train on."""
        self.arm, self.layout, self.task, self.tokenizer = arm, layout, task, tokenizer
        self.chunk_length, self.pad_id = chunk_length, tokenizer.pad_id
        self.length_multiple = length_multiple
        self.questions: list[PreparedQuestion] = []
        self.left_out = self._take(prepared)
        if not self.questions:
            raise ArtifactMismatchError(
                f"{where}: expected questions to train on, found {len(prepared)}, of which {self.left_out.too_long} "
                f"are longer than {layout.prompt_chunks} chunks, {self.left_out.long_answer} have an answer of more "
                f"than {min(layout.answer_tokens, chunk_length)} tokens and {self.left_out.no_answer} none to train "
                "on; change qa.layout or prepare other questions"
            )
        self._kept: dict[int, _Row] = {}
        self._num_kept = 0

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> RetroBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> RetroBatch:
        """A batch of B questions. neighbors_BLKR [B, 1, K, R] serve from the last token of the prompt on
        (chunk_ends_BL); None for arms without passages in the encoder."""
        ids = np.asarray(indices, dtype=np.int64)
        rows = [self._row(i) for i in ids.tolist()]
        padded = pad_questions(
            [row.prompt for row in rows], [row.answer for row in rows], self.pad_id, self.length_multiple
        )
        neighbors = mask = chunk_ends = None
        if self.arm.in_encoder:
            neighbors, mask = pad_neighbors([row.neighbors for row in rows], self.pad_id)
            chunk_ends = padded.prompt_ends[:, None]
        return RetroBatch(
            tokens_BN=padded.tokens,
            targets_BN=padded.targets,
            loss_mask_BN=padded.scored,
            neighbors_BLKR=neighbors,
            neighbor_mask_BLKR=mask,
            # Passages are text, and no chunks of any store.
            chunk_ids_BL=np.full((len(ids), 1), -1, dtype=np.int64),
            sample_ids_B=ids,
            chunk_ends_BL=chunk_ends,
        )

    def estimated_lengths(self) -> np.ndarray:
        """float64 [questions]: tokens that the decoder reads, about, and a millionth of the characters that the encoder
        reads. Questions of similar length make batches with little padding."""
        out = self._lengths.astype(np.float64)
        given = [prepared.passages[: self.layout.passages] for prepared in self.questions]
        if self.arm.in_prompt:
            texts = [f"{passages[0].title} {passages[0].text}" if passages else "" for passages in given]
            tokens = np.array([len(ids) for ids in self.tokenizer.encode_batch(texts)])
            # Longer ones are cut.
            out += np.minimum(tokens, np.maximum(self.layout.prompt_chunks * self.chunk_length - self._lengths, 0))
        if self.arm.in_encoder:
            skipped = int(self.arm.in_prompt)
            out += [sum(len(passage.text) for passage in passages[skipped:]) / 1e6 for passages in given]
        return out

    def _row(self, index: int) -> _Row:
        row = self._kept.get(index)
        if row is None:
            row = self._build(self.questions[index])
            if self._num_kept + row.size <= _MOST_KEPT:
                self._kept[index] = row
                self._num_kept += row.size
        return row

    def _build(self, prepared: PreparedQuestion) -> _Row:
        example = build_example(
            prepared, self.arm, self.layout, self.task, self.tokenizer, chunk_length=self.chunk_length
        )
        # A passage without any token (an empty text) is none.
        neighbors = tuple(np.array(passage, dtype=np.int32) for passage in example.neighbors if passage)
        return _Row(np.array(example.prompt, dtype=np.int32), neighbors, np.array(example.answer, dtype=np.int32))

    def _take(self, prepared: Sequence[PreparedQuestion]) -> LeftOut:
        """Keep the questions that fit, which is known without their passages: these give way."""
        left_out, lengths = LeftOut(), []
        longest = self.layout.prompt_chunks * self.chunk_length
        most = min(self.layout.answer_tokens, self.chunk_length)
        answers = tokenize_answers(prepared, self.task, self.tokenizer)
        prompts = bare_prompt_lengths(prepared, self.task, self.tokenizer)
        for question, answer, length in zip(prepared, answers, prompts, strict=True):
            if length > longest:
                left_out = left_out._replace(too_long=left_out.too_long + 1)
            elif not answer:
                left_out = left_out._replace(no_answer=left_out.no_answer + 1)
            elif len(answer) > most:
                left_out = left_out._replace(long_answer=left_out.long_answer + 1)
            else:
                self.questions.append(question)
                lengths.append(length + len(answer))
        #: int64 [questions]: tokens of prompt and answer without passages.
        self._lengths = np.array(lengths, dtype=np.int64)
        return left_out
