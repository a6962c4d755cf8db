"""Prepared questions that a tiny model learns: the answer is a digit of the passage's text."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

from retro.data.qa.record import Passage, PreparedQuestion, QaQuestion
from retro.data.qa.task import TaskDefinition, task_to_dict
from tests.data.qa.prepared_folder import write_prepared_folder

TASK = TaskDefinition("toy", metrics=("exact_match", "f1"))


def make_question(number: int, rng: random.Random) -> PreparedQuestion:
    answer, other = rng.sample("abcdefgh", 2)
    own = Passage(f"n{number}", f"{answer} is it", f"doc{number}", number)
    asked = QaQuestion(f"q{number}", f"n{number}?", (answer,), (own.document,))
    return PreparedQuestion(asked, (own, Passage("x", f"{other} no", f"other{number}", number + 1000)), (own,))


def write_questions(root: Path, train: int = 24, dev: int = 10, seed: int = 0) -> Path:
    rng = random.Random(seed)
    made = [make_question(i, rng) for i in range(train + dev)]
    made[0] = dataclasses.replace(made[0], question=dataclasses.replace(made[0].question, question="long " * 40))
    return write_prepared_folder(root, task_to_dict(TASK), {"train": made[:train], "dev": made[train:]})


def qa_settings(questions: Path, arm: str, **changes: object) -> dict[str, object]:
    """Fields of a run on them, for releases.settings."""
    layout = {"passages": 2, "passage_tokens": 24, "prompt_chunks": 6, "answer_tokens": 8}
    return {
        "dataset": "qa",
        "qa": {"questions": str(questions), "arm": arm, "layout": layout, "sort_batches": 2},
        "sequence_length": 56,
        **changes,
    }
