"""The processes of a run, through accelerate: device, gradient averaging, sums over processes.

Several processes are started by torchrun (`retro launch` does it). `accelerate launch --cpu --num_processes 2` starts
one process only, without a word.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from retro.config.errors import ConfigError
from retro.config.train import TrainConfig


class Processes:
    """This process among those of the run: rank of world, its device and precision."""

    def __init__(self, accelerator: Accelerator, precision: str) -> None:
        self.accelerator, self.precision = accelerator, precision
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.device: torch.device = accelerator.device
        # MPS has no float64; sums of losses and counts then have 24 bits.
        self._exact = torch.float32 if self.device.type == "mps" else torch.float64

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def autocast(self) -> Any:
        """Context of the forward pass: bfloat16 products over float32 weights, or nothing.

        Not accelerate's own, which replaces the model's `forward` and cannot be changed within one process.
        """
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model on the device; with several processes, averaging gradients over them."""
        return self.accelerator.prepare_model(model)

    def accumulate(self, model: nn.Module, last: bool) -> Any:
        """Context of one micro-batch: gradients are exchanged with the last one only."""
        return nullcontext() if last else self.accelerator.no_sync(model)

    def gather(self, values: list[float]) -> list[list[float]]:
        """`values` of every process, in rank order: exact up to 2^53."""
        if self.world == 1:
            return [values]
        rows = self.accelerator.gather(torch.tensor([values], dtype=self._exact, device=self.device))
        return rows.tolist()

    def gather_rows(self, row: Tensor) -> Tensor:
        """A tensor of the same shape in every process -> [world, ...] on the CPU."""
        if self.world == 1:
            return row[None].cpu()
        return self.accelerator.gather(row[None].to(self.device)).cpu()

    def wait(self) -> None:
        """Return when all processes have come here."""
        self.accelerator.wait_for_everyone()


def open_processes(config: TrainConfig) -> Processes:
    """Join the run's processes (those of torchrun, or this one alone).

    Raises ConfigError if device is "cuda" and there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: expected a CUDA device, found none; set device=auto or device=cpu")
    # Without a GPU, accelerate joins the processes of torchrun only if it is told that the CPU is meant.
    on_cpu = config.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    return Processes(Accelerator(cpu=on_cpu, mixed_precision="no"), config.precision)
