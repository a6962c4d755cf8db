"""How a training run is spread over processes: section `parallel` of a training configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from retro.config.checks import require, require_at_least


@dataclass(frozen=True)
class ParallelConfig:
    """One process per device. World = replicas x shard processes x tensor processes. Raises ConfigError.

    strategy: ddp = every process holds all weights, gradients are averaged; fsdp = weights, gradients and optimizer
    state are sharded over processes and gathered layer by layer (FSDP2, Zhao et al. 2023). shard: fsdp only, processes
    that hold one copy of the weights between them; None = all of them, fewer = hybrid sharding, replicas of that size.
    reshard_after_forward: fsdp only, free a layer's gathered weights after its forward pass and gather them again for
    the backward pass (False: faster, more memory). exchange: fsdp only, when gradients are summed over processes: once
    per step, so that every process holds whole gradients between micro-batches, or with every micro-batch, which holds
    sharded ones only. reduce: dtype in which fsdp sums gradients, over processes and micro-batches. tensor: processes
    that compute each layer together, each with a share of the heads and of the feed-forward block (Shoeybi et al.
    2019); they must be neighbors on one machine and divide num_heads, kv_heads, and the encoder's.
    """

    strategy: Literal["ddp", "fsdp"] = "ddp"
    shard: int | None = None
    reshard_after_forward: bool = True
    exchange: Literal["step", "micro_batch"] = "step"
    reduce: Literal["fp32", "bf16"] = "fp32"
    tensor: int = 1

    def __post_init__(self) -> None:
        require_at_least(self, 1, "shard", "tensor")
        default = ParallelConfig.__dataclass_fields__
        for name in ("shard", "reshard_after_forward", "exchange", "reduce"):
            require(
                self.strategy == "fsdp" or getattr(self, name) == default[name].default,
                f"{name}: read with strategy 'fsdp' only, found strategy {self.strategy!r}; remove it",
            )
