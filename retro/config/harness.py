"""Configuration of a checkpoint as a model of lm-evaluation-harness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from retro.config.checks import require as _require
from retro.config.checks import require_at_least as _at_least

#: What batch_size "auto" means: nothing is tried out.
AUTO_BATCH = 32


@dataclass(frozen=True)
class HarnessConfig:
    """What `--model_args` of the harness may say for `--model retro`.

    checkpoint, release, database, num_neighbors, precision: as in GenerateConfig; retrieve: "off" leaves
    cross-attention out, "on", "every:S" and "adaptive:P" say when generated text retrieves (GenerateConfig); text that
    is scored retrieves at the end of each chunk, the last of which ends with the question. device: "auto", or as torch
    names it. batch_size: sequences computed side by side, a number or "auto" (32, at most max_batch_size); max_length:
    most tokens that the model sees at once, None = as trained; max_gen_toks: most new tokens where a task does not say;
    add_bos_token: whether contexts and scored texts begin with the begin-of-text token, as in training.
    """

    #: Fields as others call them.
    RETIRED = {  # noqa: RUF012
        "pretrained": "use checkpoint=runs/NAME",
        "dtype": "use precision=fp32 or precision=bf16",
        "retrieval": "use retrieve=on or retrieve=off",
    }

    checkpoint: str
    release: str | None = None
    database: str | None = None
    num_neighbors: int | None = None
    retrieve: str = "on"
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    batch_size: int | Literal["auto"] = 1
    max_batch_size: int | None = None
    max_length: int | None = None
    max_gen_toks: int = 256
    add_bos_token: bool = True

    def __post_init__(self) -> None:
        _at_least(self, 1, "num_neighbors", "max_batch_size", "max_gen_toks")
        _at_least(self, 2, "max_length")
        _require(self.checkpoint != "", "checkpoint: expected a run or checkpoint folder, found none")
        if self.batch_size != "auto":
            _require(self.batch_size >= 1, f"batch_size: expected 1 or more, or auto, found {self.batch_size}")
            _require(
                self.max_batch_size is None,
                f"max_batch_size: goes with batch_size auto only, found batch_size {self.batch_size}; remove it",
            )

    @property
    def batch(self) -> int:
        """Sequences computed side by side."""
        if self.batch_size == "auto":
            return min(AUTO_BATCH, self.max_batch_size or AUTO_BATCH)
        return self.batch_size
