"""What training asks of whoever scores the answers of its model. Training itself cannot make a model answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from retro.config.errors import ConfigError
from retro.config.train import TrainConfig
from retro.data.qa.prepared import PreparedQuestions
from retro.data.tokenizer import Tokenizer
from retro.model.retro import RetroModel
from retro.train.distributed import Processes


class AnswerScorer(Protocol):
    """Asks a model questions."""

    @property
    def metrics(self) -> Sequence[str]:
        """Names of the scores."""

    def __call__(self, model: RetroModel, rank: int, world: int) -> tuple[int, list[float]]:
        """(number of questions, sum of each metric over them) of this process' share of the questions, in which it
        answers with the model by itself. It draws no random number."""


#: Opens the scorer of a run: its complete configuration, its questions, its tokenizer.
OpenScorer = Callable[[TrainConfig, PreparedQuestions, Tokenizer], AnswerScorer]


def open_scorer(
    config: TrainConfig, prepared: PreparedQuestions | None, tokenizer: Tokenizer, opener: OpenScorer | None
) -> AnswerScorer | None:
    """The scorer that early stopping needs, None = it needs none.

    Raises ConfigError for a metric that the task does not have, and where a run needs a scorer and nobody opens one.
    """
    stopping = config.early_stopping
    if stopping is None or not stopping.asks_questions:
        return None
    assert prepared is not None  # the configuration checks it
    if stopping.metric not in prepared.task.metrics:
        raise ConfigError(
            f"early_stopping.metric: expected loss or a metric of task {prepared.task.name} "
            f"({', '.join(prepared.task.metrics)}), found {stopping.metric!r}"
        )
    if opener is None:
        raise ConfigError(
            f"early_stopping.metric: {stopping.metric} needs a model that writes answers; start the run with `retro "
            "train`, give train() an opener, or use early_stopping.metric=loss"
        )
    return opener(config, prepared, tokenizer)


def score_answers(scorer: AnswerScorer, model: RetroModel, processes: Processes) -> dict[str, float]:
    """Mean of each metric over the questions of all processes, the same in each; the model's mode stays."""
    training = model.training
    try:
        count, sums = scorer(model, processes.data_rank, processes.data_world)
    finally:
        model.train(training)
    rows = processes.of_data(processes.gather([float(count), *sums]))
    total = sum(row[0] for row in rows)
    means = [sum(row[1 + i] for row in rows) / max(total, 1.0) for i in range(len(scorer.metrics))]
    return dict(zip(scorer.metrics, means, strict=True))
