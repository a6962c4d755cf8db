"""Background documents that a language model writes for questions, in place of retrieved passages.

A response row is one document: {"split", "id", "text", "stop" ("end" or "length"), "new_tokens"}; text None where the
model gave none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from retro.data.qa.record import PreparedQuestion
from retro.eval.tasks.base import Block
from retro.inference.language_model import GenerateRequest, LanguageModel
from retro.retrieval.policy import Never

NAME = "genread"
VERSION = 1


class GenReadTask:
    """Asks for one document per question, in blocks. See GenReadConfig."""

    name = NAME
    version = VERSION
    unit = "documents"

    def __init__(
        self,
        questions: Mapping[str, Sequence[PreparedQuestion]],
        fingerprint: str,
        *,
        prompt: str,
        tokens: int,
        batch: int = 8,
        block_batches: int = 8,
    ) -> None:
        """questions: by split; fingerprint: of the folder that they are of."""
        self._asked = [(split, prepared.question) for split, part in questions.items() for prepared in part]
        self._counts = {split: len(part) for split, part in questions.items()}
        self._fingerprint, self._prompt, self._tokens = fingerprint, prompt, tokens
        self.units_per_block = batch * block_batches
        self.num_units = len(self._asked)
        self.num_blocks = math.ceil(self.num_units / self.units_per_block)

    def identity(self) -> dict[str, Any]:
        """See Task."""
        return {
            "questions": self._fingerprint,
            "splits": self._counts,
            "prompt": self._prompt,
            "tokens": self._tokens,
            "modes": [NAME],
            "block": self.units_per_block,
        }

    def run_block(self, number: int, model: LanguageModel, carry: Any) -> Block:
        """See Task. Nothing is carried over."""
        asked = self._asked[number * self.units_per_block : (number + 1) * self.units_per_block]
        requests = [
            GenerateRequest(self._prompt.format(question=question.question), self._tokens, policy=Never())
            for _, question in asked
        ]
        begin = time.perf_counter()
        answers = model.generate_until(requests)
        seconds = time.perf_counter() - begin
        rows: list[dict[str, Any]] = [
            {
                "split": split,
                "id": question.id,
                "text": None if answer is None else answer.text,
                "stop": None if answer is None else answer.stop,
                "new_tokens": 0 if answer is None else len(answer.new_tokens),
            }
            for (split, question), answer in zip(asked, answers, strict=True)
        ]
        return Block(rows, None, {NAME: seconds}, {NAME: sum(int(row["new_tokens"]) for row in rows)}, len(rows))
