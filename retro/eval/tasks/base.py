"""What a task is: blocks of response rows, in a fixed order, each a pure function of the model's answers."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from retro.inference.language_model import LanguageModel


@dataclasses.dataclass(frozen=True)
class Block:
    """rows: JSON-able; carry: JSON-able, handed to the next block; seconds, tokens: in the model, by mode; units: how
    many of the task's units were done, for the progress display."""

    rows: list[dict[str, Any]]
    carry: Any
    seconds: dict[str, float]
    tokens: dict[str, int]
    units: int


class Task(Protocol):
    """One evaluation over fixed material. `version` is raised when equal answers give other rows."""

    name: str
    version: int
    unit: str
    num_units: int
    num_blocks: int

    def identity(self) -> dict[str, Any]:
        """What decides the rows besides the model, JSON-able."""

    def run_block(self, number: int, model: LanguageModel, carry: Any) -> Block:
        """Ask the model about block `number` (0-based); `carry` is the block before's, None for the first."""
