"""The processes of a run: device, layout, exchange of gradients and numbers.

DDP, device and launch environment go through accelerate; sharding and tensor parallelism are torch's own (accelerate's
FSDP is silently not honoured on a CPU). Several processes are started by torchrun (`retro launch` does it). `accelerate
launch --cpu --num_processes 2` starts one process only, without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from retro.config.errors import ConfigError
from retro.config.parallel import ParallelConfig
from retro.config.train import TrainConfig
from retro.model.retro import RetroModel
from retro.train.parallel.mesh import build_mesh, lay_out, open_data_group

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Processes:
    """This process among those of the run.

    rank of world; data_rank of data_world: the processes that see different sequences, those of one tensor-parallel
    group share theirs; tensor_world: processes that compute each layer together; mesh [replicate, shard, tensor], None
    where every process computes with all weights by itself; sharded: whether layers are gathered by several processes
    together. Raises ConfigError for a layout that is not possible with so many processes.
    """

    def __init__(self, accelerator: Accelerator, precision: str, parallel: ParallelConfig | None = None) -> None:
        self.accelerator, self.precision = accelerator, precision
        self.parallel = parallel or ParallelConfig()
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.device: torch.device = accelerator.device
        self.layout = lay_out(self.parallel, self.world)
        self.tensor_world, self.data_world = self.layout.tensor, self.layout.data_world
        self.data_rank = self.rank // self.tensor_world
        self.sharded = self.layout.shard > 1
        self.mesh: DeviceMesh | None = None
        self._data_group = None
        if self.sharded or self.tensor_world > 1:
            self.mesh = build_mesh(self.layout, self.device.type)
            self._data_group = open_data_group(self.layout)
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

    def wrap(self, model: RetroModel) -> nn.Module:
        """What is called for a training pass: the model, or DDP around it. Its parameters must be trainable or frozen
        by now; the optimizer may be made before or after."""
        if self.mesh is not None or self.world == 1:
            return model
        return self.accelerator.prepare_model(model)

    @contextmanager
    def accumulate(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Context of one micro-batch through what `wrap` gave: gradients are exchanged with the last one only, unless
        fsdp is to exchange them with each."""
        if self.sharded:
            from retro.train.parallel.fsdp import set_micro_batch

            exchange = last or self.parallel.exchange == "micro_batch"
            set_micro_batch(model, exchange, free=last or self.parallel.reshard_after_forward)
            yield
        elif last or self.mesh is not None:
            yield
        else:
            with self.accelerator.no_sync(model):
                yield

    @contextmanager
    def evaluate(self, model: RetroModel) -> Iterator[Callable[..., Any]]:
        """Context of evaluation, with what is to be called for a forward pass of the (unwrapped) model.

        Where layers are gathered, all processes must make the same number of passes.
        """
        if self.sharded:
            from retro.train.parallel.fsdp import gathered_for_evaluation

            with gathered_for_evaluation(model):
                yield model
        else:
            # Not a call: a compiled model would be compiled a second time, without gradients.
            yield model.forward

    def scale_and_clip(self, model: RetroModel, factor: float, limit: float | None) -> float:
        """Multiply the gradient by `factor`, then clip it to the norm `limit` (None = not); returns its norm over all
        processes in between, the same number in each. After the backward pass of a step's last micro-batch."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        if self.mesh is None:
            gradients = [p.grad for p in parameters if p.grad is not None]
            torch._foreach_mul_(gradients, factor)
            norm: Any = self.accelerator.clip_grad_norm_(parameters, float("inf") if limit is None else limit)
            return float(norm)
        from retro.train.parallel import gradients as exchange

        if self.sharded:
            exchange.fill_missing_gradients(parameters)
            whole = [p for p in parameters if not exchange.is_reduced_by_fsdp(p)]
        else:
            whole = parameters
        exchange.average_gradients(whole, self._data_group)
        return exchange.scale_and_clip(parameters, factor, limit)

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

    def of_data(self, rows: Any) -> Any:
        """Of the rows of all processes, those of processes that see different sequences [data_world, ...]."""
        return rows[:: self.tensor_world]

    def wait(self) -> None:
        """Return when all processes have come here."""
        self.accelerator.wait_for_everyone()


def open_processes(config: TrainConfig) -> Processes:
    """Join the run's processes (those of torchrun, or this one alone).

    Raises ConfigError if device is "cuda" and there is none, and for a layout that so many processes cannot have.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: expected a CUDA device, found none; set device=auto or device=cpu")
    # Without a GPU, accelerate joins the processes of torchrun only if it is told that the CPU is meant.
    on_cpu = config.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    return Processes(Accelerator(cpu=on_cpu, mixed_precision="no"), config.precision, config.parallel)
