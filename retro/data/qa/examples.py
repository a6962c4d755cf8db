"""Questions as token ids: what a decoder reads, what the encoder reads, and the answer.

Templates, and which passage goes where, are those of Wang et al. 2023, sections 4.2 and 7.1.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from retro.config.errors import ConfigError
from retro.config.qa import Arm, QaLayoutConfig
from retro.data.qa.prompt_fit import fit_passages
from retro.data.qa.record import Passage, PreparedQuestion

if TYPE_CHECKING:
    from retro.data.qa.task import TaskDefinition
    from retro.data.tokenizer import Tokenizer


class QuestionTooLongError(ConfigError):
    """A question, with the demonstrations that belong to it, has more tokens than its prompt may have."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One question for the model.

    prompt: what the decoder reads, from the begin-of-text token on, without padding; neighbors: one tuple of tokens for
    each passage that the encoder reads; answer: the training answer and the end-of-text token, () where the task's
    answers are expressions that no oracle passage matches; passages: which of the evidence are used, as indices, the
    first `in_prompt` of them stand in the prompt and the others are the neighbors; truncated: whether a passage of the
    prompt was cut, or left out for want of room.
    """

    prompt: tuple[int, ...]
    neighbors: tuple[tuple[int, ...], ...]
    answer: tuple[int, ...]
    passages: tuple[int, ...] = ()
    in_prompt: int = 0
    truncated: bool = False


def build_example(
    prepared: PreparedQuestion,
    arm: Arm,
    layout: QaLayoutConfig,
    task: TaskDefinition,
    tokenizer: Tokenizer,
    *,
    chunk_length: int,
    evidence: Sequence[Passage] | None = None,
    shots: Sequence[PreparedQuestion] = (),
) -> Example:
    """The tokens of a question in an arm.

    evidence: its passages, best first (`choose_evidence`), None = those that were retrieved; at most layout.passages
    are used. shots: demonstrations before it, each with its own best passage where the arm has one in the prompt (an
    oracle passage, where the arm's are). The prompt has at most prompt_chunks * chunk_length tokens: passages share
    what the questions leave, and are cut, to whole sentences where these fill half of their room, otherwise between
    words. The text is tokenized as a whole. Raises QuestionTooLongError if it does not fit without any passage.
    """
    limit = layout.prompt_chunks * chunk_length
    if arm.in_prompt or arm.in_encoder:
        given = tuple(prepared.passages if evidence is None else evidence)[: layout.passages]
    else:
        given = ()
    first = given[0] if given and arm.in_prompt else None
    parts = [_Part(task, shot, _shot_passage(shot, arm) if arm.in_prompt else None) for shot in shots]
    parts = [part for part in parts if part.answer is not None]
    question = _Part(task, prepared, first)

    def encode(passages: Sequence[Passage | None]) -> list[int]:
        texts = [part.text(passage) + part.answer_text for part, passage in zip(parts, passages, strict=False)]
        texts.append(question.text(passages[-1]))
        return [tokenizer.bos_id, *tokenizer.encode(_join(task, texts))]

    prompt, truncated, used = fit_passages(encode, [*(part.passage for part in parts), first], limit)
    if prompt is None:
        raise QuestionTooLongError(
            f"question {prepared.question.id}: expected at most {limit} tokens (prompt_chunks {layout.prompt_chunks} x "
            f"{chunk_length}), found {len(encode([None] * (len(parts) + 1)))}"
            f"{f' with {len(parts)} demonstrations' if parts else ''}; raise layout.prompt_chunks"
            f"{' or lower shots' if parts else ''}"
        )
    skipped = 1 if arm.in_prompt else 0
    texts = [_passage_text(task, passage).rstrip("\n") for passage in given[skipped:]] if arm.in_encoder else []
    neighbors = tuple(tuple(ids[: layout.passage_tokens]) for ids in tokenizer.encode_batch(texts)) if texts else ()
    read = [i for i in range(len(given)) if (i >= skipped and arm.in_encoder) or (i < skipped and used)]
    return Example(
        prompt=tuple(prompt),
        neighbors=neighbors,
        answer=tokenize_answers([prepared], task, tokenizer)[0],
        passages=tuple(read),
        in_prompt=int(used),
        truncated=truncated,
    )


def training_answer(prepared: PreparedQuestion, task: TaskDefinition) -> str | None:
    """What a model is trained to say: the first accepted answer; where answers are expressions, the first match in the
    oracle passages (Karpukhin et al. 2020 train CuratedTREC so), None where there is none."""
    answers = prepared.question.answers
    if task.answers_are == "text":
        return answers[0]
    for passage in prepared.oracle:
        for answer in answers:
            match = re.search(answer, passage.text, flags=re.IGNORECASE | re.MULTILINE)
            if match is not None and match.group().strip():
                return match.group().strip()
    return None


def tokenize_answers(
    prepared: Sequence[PreparedQuestion], task: TaskDefinition, tokenizer: Tokenizer
) -> list[tuple[int, ...]]:
    """Tokens of each training answer as they follow the prompt, and the end-of-text token; () where there is none."""
    answers = [training_answer(question, task) for question in prepared]
    texts = ["" if answer is None else task.prompts.format_answer(answer) for answer in answers]
    questions = [task.prompts.format_question(question.question.question) for question in prepared]
    alone = tokenizer.encode_batch(questions)
    both = tokenizer.encode_batch([question + text for question, text in zip(questions, texts, strict=True)])
    out: list[tuple[int, ...]] = []
    for answer, text, begin, whole in zip(answers, texts, alone, both, strict=True):
        # As it stands in the text, unless the border lies within a token.
        ids = whole[len(begin) :] if whole[: len(begin)] == begin else tokenizer.encode(text)
        out.append(() if answer is None else (*ids, tokenizer.eos_id))
    return out


def bare_prompt_lengths(prepared: Sequence[PreparedQuestion], task: TaskDefinition, tokenizer: Tokenizer) -> list[int]:
    """Tokens of each prompt without passages and demonstrations: what must fit, because passages give way."""
    texts = [_join(task, [task.prompts.format_question(question.question.question)]) for question in prepared]
    return [1 + len(ids) for ids in tokenizer.encode_batch(texts)]


def _join(task: TaskDefinition, parts: list[str]) -> str:
    opening = [task.instruction] if task.instruction else []
    return task.prompts.between_shots.join([*opening, *parts])


class _Part:
    """A question of the prompt: of a demonstration, or the one that is asked."""

    def __init__(self, task: TaskDefinition, prepared: PreparedQuestion, passage: Passage | None) -> None:
        self._task, self.passage = task, passage
        self._question = task.prompts.format_question(prepared.question.question)
        self.answer = training_answer(prepared, task)
        self.answer_text = "" if self.answer is None else task.prompts.format_answer(self.answer)

    def text(self, passage: Passage | None) -> str:
        return ("" if passage is None else _passage_text(self._task, passage)) + self._question


def _passage_text(task: TaskDefinition, passage: Passage) -> str:
    # A line of the template is a line of the prompt.
    text = " ".join(passage.text.split())
    return task.prompts.format_passage(" ".join(passage.title.split()), text)


def _shot_passage(shot: PreparedQuestion, arm: Arm) -> Passage | None:
    passages = shot.oracle if arm.evidence == "oracle" and shot.oracle else shot.passages
    return passages[0] if passages else None
