"""Arms of an evaluation: one way of giving evidence, or a rule that chooses between two of them for each question."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from retro.artifacts.retrieval_rule import ConfidenceRule, RetrievalRule, open_rule, rule_fingerprint
from retro.config.errors import ConfigError
from retro.config.qa import ADAPTIVE, Arm, parse_arm
from retro.data.qa.record import QaQuestion


@dataclasses.dataclass(frozen=True)
class FixedArm:
    """Every question is asked in one way. name: as rows and results call it."""

    name: str
    arm: Arm

    @property
    def asks(self) -> tuple[Arm, ...]:
        """The ways in which questions may be asked."""
        return (self.arm,)


@dataclasses.dataclass(frozen=True)
class AdaptiveArm:
    """A rule says for each question whether it is asked with retrieval (Mallen et al. 2023, section 5).

    name: "adaptive:" and the file's name without its ending; first: how a question is asked before a rule of
    confidence decides; otherwise: with retrieval.
    """

    name: str
    rule: RetrievalRule
    closed: Arm
    retrieval: Arm

    @property
    def asks(self) -> tuple[Arm, ...]:
        """The ways in which questions may be asked."""
        return (self.closed, self.retrieval)

    @property
    def asks_first(self) -> bool:
        """Whether the answer without retrieval decides."""
        return isinstance(self.rule, ConfidenceRule) and self.rule.fixed is None

    def retrieves(self, question: QaQuestion, logprobs: Sequence[float] | None = None) -> bool:
        """Whether to retrieve. logprobs: natural, of the tokens of the answer without retrieval, where that decides."""
        if isinstance(self.rule, ConfidenceRule):
            return self.rule.retrieves(logprobs or ())
        return self.rule.retrieves(question.relation, question.popularity)

    def fitted_on(self, questions: str, split: str) -> bool:
        """Whether the rule says that it was fitted on this split of the prepared questions of that fingerprint."""
        return (self.rule.fitted.get("prepared"), self.rule.fitted.get("split")) == (questions, split)

    @property
    def fingerprint(self) -> str:
        """Of what the rule decides."""
        return rule_fingerprint(self.rule)


EvaluatedArm = FixedArm | AdaptiveArm


def open_arms(spellings: Sequence[str], reads_neighbors: bool) -> list[EvaluatedArm]:
    """The arms of a configuration. reads_neighbors: whether the model has cross-attention.

    Raises ConfigError for an arm that the model cannot read or two of one name, ArtifactError for a rule's file.
    """
    arms = [_open_arm(text) for text in spellings]
    names = [arm.name for arm in arms]
    for text, arm in zip(spellings, arms, strict=True):
        if names.count(arm.name) > 1:
            raise ConfigError(f"qa.arms: {text}: expected names that differ, found {arm.name!r} twice; rename the file")
        for asked in arm.asks:
            if asked.in_encoder and not reads_neighbors:
                raise ConfigError(
                    f"qa.arms: {text}: expected arms that a plain GPT can read (closed_book, rag), found one whose "
                    "passages are read by an encoder, which this model lacks; remove it, or evaluate a RETRO"
                )
    return arms


def _open_arm(text: str) -> EvaluatedArm:
    if not text.startswith(ADAPTIVE):
        return FixedArm(text, parse_arm(text))
    path = Path(text.removeprefix(ADAPTIVE))
    rule = open_rule(path)
    return AdaptiveArm(f"{ADAPTIVE}{path.stem}", rule, parse_arm(rule.arms.closed), parse_arm(rule.arms.retrieval))
