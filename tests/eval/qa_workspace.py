"""Prepared questions about the functions of the tiny corpus, and a model that reads what it is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from retro.data.qa.record import Passage, PreparedQuestion, QaQuestion
from retro.data.qa.task import TaskDefinition, task_to_dict
from retro.data.tokenizer import open_tokenizer
from retro.inference.language_model import Generated
from tests.data.qa.prepared_folder import write_prepared_folder
from tests.eval.workspace import Workspace

#: Answers that stand in no other answer.
COLOURS = ["crimson", "emerald", "indigo", "amber", "violet", "scarlet"]
KINDS = ["rows", "pixels"]


def prepared_question(number: int, split: str) -> PreparedQuestion:
    """Question `number`: its answer stands in passage number % 4 of five (and nowhere for every fourth question)."""
    answer, name = COLOURS[number % len(COLOURS)], f"{split} thing {number}"
    question = QaQuestion(
        id=f"{split}{number:03d}",
        question=f"what colour is {name}?",
        answers=(answer.title(), f"the {answer}"),
        evidence=(f"doc-{split}-{number}",),
        group=KINDS[number % 2],
        relation=f"colour of {KINDS[number % 2]}",
        subject=name,
        popularity=None if number % 5 == 4 else float(10 ** (number % 4)),
        object_popularity=7.0,
    )
    place = number % 4
    passages = [
        Passage(f"page {i}", f"{name} was seen by day {i}.", f"other-{split}-{number}-{i}", i) for i in range(5)
    ]
    own = Passage(name, f"{name} is {answer}, they say.", f"doc-{split}-{number}", 100 + number, 1.5)
    if place < 3:
        passages[place] = own
    return PreparedQuestion(question, tuple(passages), (own,), seen=None if number % 7 == 6 else number % 3 == 0)


def write_questions(root: Path, task: TaskDefinition | None = None, test: int = 22, train: int = 12) -> Path:
    """Folder of prepared questions with the splits train and test."""
    task = task or TaskDefinition(
        name="colours", metrics=("exact_match", "f1", "substring", "substring_strict"), primary="exact_match"
    )
    splits = {"train": [prepared_question(i, "train") for i in range(train)]} if train else {}
    splits["test"] = [prepared_question(i, "test") for i in range(test)]
    return write_prepared_folder(root, task_to_dict(task), splits)


@pytest.fixture(scope="session")
def colour_questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written once per test session, never changed."""
    return write_questions(tmp_path_factory.mktemp("questions") / "colours")


class Reader:
    """Says the first colour that stands in its prompt or its neighbors; "no idea" otherwise; nothing to `silent`.

    sure: log-probability of each token where it says a colour; calls: how many requests came at a time.
    """

    def __init__(self, workspace: Workspace, silent: tuple[str, ...] = (), seconds: float = 0.25) -> None:
        self.tokenizer = open_tokenizer(workspace.release.tokenizer)
        self.silent, self.seconds = silent, seconds
        self.requests: list = []
        self.calls: list[int] = []

    def generate_until(self, requests):
        self.calls.append(len(requests))
        self.requests += requests
        return [self._answer(request) for request in requests]

    def prompt(self, request) -> str:
        return self.tokenizer.decode(list(request.prompt))

    def neighbors(self, request) -> list[str]:
        return [self.tokenizer.decode(list(tokens)) for tokens in request.neighbors]

    def _answer(self, request):
        prompt = self.prompt(request)
        if any(name in prompt for name in self.silent):
            return None
        read = " ".join([prompt.split("\n\n")[-1], *self.neighbors(request)])
        colour = next((c for c in COLOURS if c in read), None)
        text = f" {colour}" if colour else " no idea"
        logprob = -0.125 if colour else -2.0
        return Generated(request.prompt, (5, 6, 7), text, "until", (), (logprob,) * 3, self.seconds)
