"""Configuration of question answering: which evidence a model is given, and where (arms)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from retro.config.checks import require, require_at_least
from retro.config.errors import ConfigError

EvidenceSource = Literal["retrieved", "oracle", "random"]


@dataclass(frozen=True)
class Arm:
    """What a model is given with a question (Wang et al. 2023, section 7.1).

    in_prompt: whether the first passage stands in the prompt (template A instead of B); in_encoder: whether the
    passages, or those after the first, are neighbors of the question's last chunk; evidence: which passages; gate:
    False = cross-attention is left out.
    """

    name: str
    in_prompt: bool
    in_encoder: bool
    evidence: EvidenceSource = "retrieved"
    gate: bool = True


_BASES = {
    "closed_book": (False, False),
    "rag": (True, False),
    "retro": (False, True),
    "retro++": (True, True),
}
_MODIFIERS = ("oracle", "random", "gate_0")
#: Begin of an arm of an evaluation that asks each question as the rule of a policy.json says.
ADAPTIVE = "adaptive:"


def parse_arm(text: str) -> Arm:
    """The arm of a spelling: closed_book, rag, retro or retro++, and after a slash one of oracle (passages that hold
    the answer), random (another question's passages) and gate_0 (cross-attention left out). Raises ConfigError."""
    base, slash, modifier = text.partition("/")
    known = base in _BASES and (not slash or modifier in _MODIFIERS)
    if known and modifier in ("oracle", "random"):
        known = base != "closed_book"
    if known and modifier == "gate_0":
        known = _BASES[base][1]
    if not known:
        raise ConfigError(
            f"arms: expected {', '.join(_BASES)}, each but closed_book also with /oracle or /random, retro and retro++ "
            f"also with /gate_0; found {text!r}"
        )
    in_prompt, in_encoder = _BASES[base]
    arm = Arm(text, in_prompt, in_encoder)
    if modifier == "gate_0":
        return dataclasses.replace(arm, gate=False)
    return dataclasses.replace(arm, evidence=modifier) if modifier else arm  # type: ignore[arg-type]


@dataclass(frozen=True)
class QaLayoutConfig:
    """How a question and its passages become tokens.

    passages: most passages of a question, in prompt and encoder together; passage_tokens: of each in the encoder, its
    title included, longer ones are cut; prompt_chunks: most chunks of the prompt, whose passages are cut to fit, never
    the question; answer_tokens: most tokens of an answer, at most a chunk.
    """

    passages: int = 5
    passage_tokens: int = 128
    prompt_chunks: int = 8
    answer_tokens: int = 24

    def __post_init__(self) -> None:
        require_at_least(self, 1, "passages", "passage_tokens", "prompt_chunks", "answer_tokens")


@dataclass(frozen=True)
class QaEvalConfig:
    """Section `qa` of an evaluation (task: qa).

    questions: folder of prepared questions (`retro qa prepare`); split; arms: see parse_arm, and adaptive:FILE, which
    asks each question in one of two arms as the policy.json of `retro qa adaptive` says; shots: examples in the
    prompt, out of the training split, drawn by shot_seed (for questions with a relation one of each other relation,
    Mallen et al. 2023); max_questions: the first so many of a seeded order, None = all; latency_questions: so many are
    also asked one at a time, for the latency of each arm.
    """

    questions: str = ""
    split: str = "test"
    arms: tuple[str, ...] = ()
    layout: QaLayoutConfig = dataclasses.field(default_factory=QaLayoutConfig)
    shots: int = 0
    shot_seed: int = 0
    max_questions: int | None = None
    latency_questions: int = 0

    def __post_init__(self) -> None:
        require(self.questions != "", "qa.questions: expected a folder that `retro qa prepare` made, found none")
        require(len(self.arms) > 0, "qa.arms: expected at least one, such as [closed_book, retro]")
        require(len(set(self.arms)) == len(self.arms), f"qa.arms: expected each once, found {list(self.arms)}")
        for arm in self.arms:
            if arm.startswith(ADAPTIVE):
                require(arm != ADAPTIVE, f"qa.arms: expected the path of a policy.json after {ADAPTIVE}, found none")
            else:
                parse_arm(arm)
        require_at_least(self, 0, "shots", "shot_seed", "latency_questions")
        require_at_least(self, 1, "max_questions")


@dataclass(frozen=True)
class QaTrainConfig:
    """Section `qa` of a training run (dataset: qa): fine-tuning on prepared questions.

    questions: folder of prepared questions; arm: what the model is given (closed_book, rag, retro, retro++); split: of
    the training questions; validation_split: of those that validations and early stopping use; sort_batches: the
    questions of so many steps are sorted by length before they are cut into batches, so that there is less padding (1 =
    not; the order stays a function of the seed).
    """

    questions: str = ""
    arm: str = "closed_book"
    layout: QaLayoutConfig = dataclasses.field(default_factory=QaLayoutConfig)
    split: str = "train"
    validation_split: str = "dev"
    sort_batches: int = 16

    def __post_init__(self) -> None:
        require(self.questions != "", "qa.questions: expected a folder that `retro qa prepare` made, found none")
        arm = parse_arm(self.arm)
        require(
            arm.evidence == "retrieved" and arm.gate,
            f"qa.arm: expected closed_book, rag, retro or retro++, found {self.arm!r}",
        )
        require_at_least(self, 1, "sort_batches")
        require(
            self.split != self.validation_split,
            f"qa.validation_split: expected another split than the one that is trained on, found {self.split!r}",
        )

    def check_gpt(self) -> None:
        """Raises ConfigError for an arm that a plain GPT cannot read."""
        require(
            not parse_arm(self.arm).in_encoder,
            f"qa.arm: {self.arm!r} puts passages into the encoder, which a plain GPT lacks; use closed_book or rag, or "
            "start from a RETRO",
        )
