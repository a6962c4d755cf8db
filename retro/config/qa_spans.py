"""Configuration of questions made out of plain text."""

from __future__ import annotations

from dataclasses import dataclass

from retro.config.checks import require, require_at_least


@dataclass(frozen=True)
class SpanQuestionsConfig:
    """Make questions that ask for a name or a number taken out of a sentence (`retro qa spans`).

    release: release.json of the prepared data, or its folder; output: the file of questions, which is not there yet;
    split: whose documents are asked about, which should be train: questions about others would teach what they say;
    per_document: most questions of one document; min_words: shorter sentences ask nothing; max_words: of a question,
    longer sentences are cut around the gap; max_answer_words; max_questions: None = all; seed: of all choices.
    """

    release: str
    output: str
    split: str = "train"
    per_document: int = 3
    min_words: int = 8
    max_words: int = 24
    max_answer_words: int = 5
    max_questions: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("release", "output"):
            require(getattr(self, name) != "", f"{name}: expected a path, found an empty text")
        require_at_least(self, 1, "per_document", "min_words", "max_words", "max_answer_words", "max_questions")
        require_at_least(self, 0, "seed")
        require(self.max_words >= 4, f"max_words: expected 4 or more, found {self.max_words}")
