"""Fine-tuning on questions: loss on the answers only, from the weights of a run on the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retro.config.errors import ConfigError
from retro.config.loader import from_dict
from retro.config.train import TrainConfig
from retro.data.question_dataset import open_question_sequences
from retro.train.run import train
from tests.eval.workspace import CHUNK, SEQUENCE, Workspace, workspace
from tests.train import releases

__all__ = ["workspace"]


def settings(workspace: Workspace, root: Path, **changes: Any) -> dict[str, Any]:
    values = releases.settings(workspace.release.path, root, checkpoint_every=0, validate_every=10, steps=20)
    values["model"]["chunk_length"] = CHUNK
    return {**values, "sequence_length": SEQUENCE, "log_every": 1, **changes}


def test_learns_answers_from_the_weights_of_a_text_run(workspace: Workspace, tmp_path: Path):
    text = train(from_dict(TrainConfig, settings(workspace, tmp_path, name="text"))).folder
    folder = workspace.release.questions["docs"]
    questions, test = (open_question_sequences(folder, split) for split in ("train", "test"))
    fields = {
        "name": "questions",
        "dataset": "questions",
        "init_from": str(text),
        "sequence_length": questions.sequence_length,
        "validate_sequences": 10**6,
    }
    values = settings(workspace, tmp_path, **fields)
    del values["model"]
    run = train(from_dict(TrainConfig, values)).folder
    rows = releases.metrics(run, "train")
    assert rows[-1]["loss"] < rows[0]["loss"]
    # 80 questions are seen in 20 steps of 4: whole epochs score every answer token of each question once.
    per_question = np.asarray(questions.answer_lengths)
    assert rows[0]["tokens"] <= 4 * per_question.max()
    assert rows[0]["tokens"] >= 4 * per_question.min()
    assert len(test) > 0
    assert releases.metrics(run, "validation")[0]["step"] == 10

    values["sequence_length"] = SEQUENCE + questions.sequence_length
    values["name"] = "other"
    with pytest.raises(ConfigError, match=f"set sequence_length={questions.sequence_length}"):
        train(from_dict(TrainConfig, values))
