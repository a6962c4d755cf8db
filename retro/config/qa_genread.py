"""Configuration of `retro qa genread`: passages that a language model writes instead of passages that are found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from retro.config.checks import require, require_at_least


@dataclass(frozen=True)
class GenReadConfig:
    """Have a model write a background document for each question, to be read like a retrieved passage (Yu et al. 2023,
    "Generate rather than retrieve"; as Mallen et al. 2023, section 4, use it).

    checkpoint, release, device, precision, batch: as in EvalConfig; questions: folder of prepared questions; output: a
    folder for the same questions with the written passages, new or begun by an earlier run; splits: () = all;
    max_questions: the first so many of each split, None = all; tokens: most of a document, 150 as in the paper; prompt:
    with {question} once, a brace of the text itself is written twice. Documents are decoded greedily and without
    retrieval.
    """

    checkpoint: str
    questions: str
    output: str
    splits: tuple[str, ...] = ()
    max_questions: int | None = None
    tokens: int = 150
    prompt: str = "Generate a background document to answer the given question.\n\n{question}\n\n"
    release: str | None = None
    batch: int = 8
    block_batches: int = 8
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        for name, what in (
            ("checkpoint", "a run or checkpoint folder"),
            ("questions", "a folder that `retro qa prepare` made"),
            ("output", "the name of a folder"),
        ):
            require(getattr(self, name) != "", f"{name}: expected {what}, found nothing")
        require_at_least(self, 1, "max_questions", "tokens", "batch", "block_batches")
        require(len(set(self.splits)) == len(self.splits), f"splits: expected each once, found {list(self.splits)}")
        try:
            # Two signs: a place that takes a part of the question would show one of them.
            good = self.prompt.format(question="\0\1").count("\0\1") == 1
        except (ValueError, KeyError, IndexError, AttributeError, MemoryError, OverflowError):
            good = False
        require(good, f"prompt: expected a template with {{question}} once and no other place, found {self.prompt!r}")
