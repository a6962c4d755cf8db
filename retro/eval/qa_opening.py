"""Opens what task qa needs: prepared questions, arms that fit the model, tokenizer."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

from retro.config.errors import ConfigError
from retro.config.evaluation import EvalConfig
from retro.data.qa.prepared import PreparedQuestions, open_prepared
from retro.data.qa.record import PreparedQuestion
from retro.data.tokenizer import Tokenizer
from retro.eval.qa_notes import evaluation_notes
from retro.eval.tasks.qa import QaTask
from retro.eval.tasks.qa_arms import open_arms
from retro.inference.checkpoint import Checkpoint

if TYPE_CHECKING:
    from retro.model import RetroModel

_TRAIN = "train"


def open_qa_task(config: EvalConfig, checkpoint: Checkpoint, tokenizer: Tokenizer, model: RetroModel) -> QaTask:
    """The task of section qa. Raises ConfigError for arms or sizes that the model cannot read, ArtifactError for
    questions or rules that cannot be opened."""
    assert config.qa is not None
    settings = config.qa
    arms = open_arms(settings.arms, model.config.is_retro)
    prepared = open_prepared(settings.questions)
    questions = prepared.read(settings.split)
    for note in evaluation_notes(prepared, settings.split, questions, arms, checkpoint.trained_on):
        print(f"note: {note}", file=sys.stderr)
    train = _read_training(prepared, bool(settings.shots)) if _TRAIN in prepared.splits else []
    if settings.shots and not train:
        raise ConfigError(
            f"qa.shots: demonstrations come from split {_TRAIN!r}, and {settings.questions} has none "
            f"({', '.join(prepared.splits)}); prepare the questions with it, or set qa.shots=0"
        )
    task = QaTask(
        prepared.task,
        questions,
        train,
        arms,
        tokenizer,
        chunk_length=model.config.chunk_length,
        questions_fingerprint=prepared.fingerprint,
        layout=settings.layout,
        shots=settings.shots,
        shot_seed=settings.shot_seed,
        max_questions=settings.max_questions,
        latency_questions=settings.latency_questions,
        seed=config.seed,
        batch=config.batch,
        block_batches=config.block_batches,
    )
    positions = model.config.max_positions
    if positions is not None and task.window_length > positions:
        raise ConfigError(
            f"qa.layout: prompt_chunks and answer_tokens make {task.window_length} positions, expected at most the "
            f"model's {positions}; lower qa.layout.prompt_chunks"
        )
    return task


def _read_training(prepared: PreparedQuestions, demonstrations: bool) -> list[PreparedQuestion]:
    """Training questions with no more passages than demonstrations need, which is one: training splits are large."""
    # Expressions are shown by what they match in the oracle passages.
    oracle = None if prepared.task.answers_are == "regex" else 1
    keep = (1, oracle) if demonstrations else (0, 0)
    return [
        dataclasses.replace(question, passages=question.passages[: keep[0]], oracle=question.oracle[: keep[1]])
        for question in prepared.iter(_TRAIN)
    ]
