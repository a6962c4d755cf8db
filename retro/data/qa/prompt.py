"""Templates of prompts: how a question, a passage and an answer are written for a language model."""

from __future__ import annotations

import string
from dataclasses import dataclass

from retro.config.checks import require
from retro.config.errors import ConfigError


@dataclass(frozen=True)
class Prompts:
    """Templates (Wang et al. 2023, section 7.1: A is `passage` and `question`, B is `question` alone).

    question: {question}; passage: {title} and {text}, stands right before the question; passage_without_title: {text},
    for passages that have none; answer: {answer}; between_shots: after the instruction and after every demonstration.
    """

    question: str = "question: {question}\nanswer:"
    passage: str = "title: {title}, source: {text}\n"
    passage_without_title: str = "source: {text}\n"
    answer: str = " {answer}"
    between_shots: str = "\n\n"

    def __post_init__(self) -> None:
        _check_template("question", self.question, ("question",))
        _check_template("passage", self.passage, ("text",), ("title",))
        _check_template("passage_without_title", self.passage_without_title, ("text",))
        _check_template("answer", self.answer, ("answer",))

    def format_question(self, question: str) -> str:
        """What the model reads last; `format_answer` writes what follows."""
        return self.question.format(question=question)

    def format_passage(self, title: str, text: str) -> str:
        """A passage in the prompt, with the line end that divides it from the question."""
        if title:
            return self.passage.format(title=title, text=text)
        return self.passage_without_title.format(text=text)

    def format_answer(self, answer: str) -> str:
        """What the model is to write after the question; in training the end-of-text token follows."""
        return self.answer.format(answer=answer)


def _check_template(name: str, template: str, needed: tuple[str, ...], allowed: tuple[str, ...] = ()) -> None:
    """Raise ConfigError unless each needed place is there once and no place is there that is not known."""
    try:
        places = [field for _, field, spec, how in string.Formatter().parse(template) if field is not None]
        plain = all(not spec and how is None for _, field, spec, how in string.Formatter().parse(template) if field)
    except ValueError as error:
        raise ConfigError(f"{name}: not a template ({error}); a brace of the text itself is written twice") from None
    known = {*needed, *allowed}
    expected = ", ".join(f"{{{place}}}" for place in (*needed, *allowed))
    require(
        plain and set(places) <= known and all(places.count(place) == 1 for place in needed),
        f"{name}: expected a template with {expected}, each once and no other, found {template!r}",
    )
    require(len(places) == len(set(places)), f"{name}: {template!r} has a place twice")
