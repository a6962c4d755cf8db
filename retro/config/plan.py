"""The hardware that a training run is planned for: section `plan` of a training configuration."""

from __future__ import annotations

from dataclasses import dataclass

from retro.config.checks import require, require_at_least
from retro.config.model import ModelConfig


@dataclass(frozen=True)
class PlanConfig:
    """Read by `retro train --plan` only; a run finds out by itself what it runs on. Raises ConfigError.

    devices: processes of the whole run, one device each. device: cpu, or the name of a GPU, which gives its memory
    and its peak (an unknown name is answered with the known ones); memory_gib: of one device, in GiB, instead of
    the named one's; without either no plan is refused. peak_tflops of the configuration takes precedence over the
    named device's. mfu: share of the peak that the model's operations reach (model FLOPs utilisation).
    neighbor_share: share of the chunks that have neighbors; counts for operations, while memory is planned for all
    of them. vocab_size: where the model leaves it to the tokenizer, which no plan reads. base: the model that
    `init_from` or `retrofit.base` names, as a section or a file of configs/model, where that is not there yet.
    """

    devices: int = 1
    device: str | None = None
    memory_gib: float | None = None
    mfu: float = 0.3
    neighbor_share: float = 1.0
    vocab_size: int | None = None
    base: ModelConfig | None = None

    def __post_init__(self) -> None:
        require_at_least(self, 1, "devices", "vocab_size")
        require(
            self.memory_gib is None or self.memory_gib > 0, f"memory_gib: expected above 0, found {self.memory_gib}"
        )
        require(0 < self.mfu <= 1, f"mfu: expected a share in (0, 1], e.g. 0.3 for 30 %, found {self.mfu}")
        require(
            0 <= self.neighbor_share <= 1,
            f"neighbor_share: expected a share in [0, 1], found {self.neighbor_share}",
        )
