"""What a model that is being trained answers: the evaluation task `qa` on some questions, for early stopping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from retro.config.qa import Arm, QaLayoutConfig
from retro.data.qa.record import PreparedQuestion
from retro.data.qa.task import TaskDefinition
from retro.data.tokenizer import Tokenizer
from retro.eval.tasks.qa import QaTask
from retro.eval.tasks.qa_arms import FixedArm
from retro.eval.tasks.qa_results import qa_scores
from retro.inference.retro_lm import RetroLM

if TYPE_CHECKING:
    from retro.model import RetroModel


class AnswerScorer:
    """Asks a model the same questions again and again, as `retro eval` asks them.

    questions: those that are asked; batch: side by side.
    """

    def __init__(
        self,
        task: TaskDefinition,
        questions: Sequence[PreparedQuestion],
        arm: Arm,
        layout: QaLayoutConfig,
        tokenizer: Tokenizer,
        *,
        chunk_length: int,
        precision: Literal["fp32", "bf16"] = "fp32",
        batch: int = 32,
    ) -> None:
        self.metrics = task.metrics
        self._task, self._questions, self._arm, self._layout = task, questions, arm, layout
        self._tokenizer, self._chunk = tokenizer, chunk_length
        self._precision: Literal["fp32", "bf16"] = precision
        self._batch = batch

    def __call__(self, model: RetroModel, rank: int = 0, world: int = 1) -> tuple[int, list[float]]:
        """(questions that the model answered, sum of each metric over them), of every `world`-th question from the
        `rank`-th on. The model is in evaluation mode afterwards."""
        own = self._questions[rank::world]
        asked = QaTask(
            self._task,
            own,
            (),
            [FixedArm(self._arm.name, self._arm)],
            self._tokenizer,
            chunk_length=self._chunk,
            questions_fingerprint="",
            layout=self._layout,
            batch=self._batch,
        )
        lm = RetroLM(
            model, self._tokenizer, window_length=asked.window_length, precision=self._precision, batch=self._batch
        )
        rows = [row for number in range(asked.num_blocks) for row in asked.run_block(number, lm, None).rows]
        scores = [row for row in qa_scores(rows, self.metrics) if row[self.metrics[0]] is not None]
        return len(scores), [sum(float(row[metric]) for row in scores) for metric in self.metrics]
