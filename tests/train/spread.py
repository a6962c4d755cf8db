"""Small models spread over processes, for tests of checkpoints: no training, only tensors that can be told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from retro.config.model import ModelConfig
from retro.model import RetroModel
from retro.optim.adamw import build_adamw
from retro.train.checkpointing.identity import Identity
from retro.train.checkpointing.peers import ALONE, Peers
from retro.train.checkpointing.save import Resumed
from retro.train.parallel.state import named_model_state, named_optimizer_state
from retro.train.parallel.tensor_parallel import apply_tensor_parallel
from retro.train.state import TrainState

# Widths that 2, 3 and 4 processes cannot share evenly; a tensor with fewer rows than processes.
CONFIG = ModelConfig(
    vocab_size=7, width=6, num_layers=2, num_heads=2, ffn_width=10, chunk_length=2, cross_attention_layers=(2,)
)
#: As few tensors as can be.
SMALLEST = ModelConfig(vocab_size=7, width=6, num_layers=1, num_heads=1, chunk_length=2, cross_attention_layers=())
SETTINGS = {"sequence_length": 4, "num_neighbors": 2, "packing": "chunks", "steps": 9, "model": {"width": 6}}
IDENTITY = Identity(SETTINGS, "release-1", "tokenizer-1")


def make(
    seed: int,
    mesh: DeviceMesh | None = None,
    trained: bool = True,
    config: ModelConfig = CONFIG,
    tensor: DeviceMesh | None = None,
) -> tuple[RetroModel, torch.optim.Optimizer]:
    """A model, sharded over `mesh` and its layers split over `tensor` if there are any, after one step along a gradient
    that `seed` decides."""
    torch.manual_seed(seed)
    model = RetroModel(config)
    if tensor is not None:
        apply_tensor_parallel(model, tensor)
    if mesh is not None:
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = build_adamw(model, learning_rate=0.1, weight_decay=0.1, betas=(0.9, 0.99), eps=1e-8)
    if trained:
        for parameter in model.parameters():
            gradient = torch.randn(parameter.shape)
            if isinstance(parameter, DTensor):
                gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def resumed(step: int, world: int = 1) -> Resumed:
    """The rest of a checkpoint of `step`."""
    rng = {"cpu": torch.arange(world * 4, dtype=torch.uint8).reshape(world, 4)}
    return Resumed(TrainState(step, step * 4, step * 100, 1.5), rng, {"metrics": {"x": 1 / 3}})


def whole_state(model: RetroModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of model and optimizer, whole; every process of the mesh must call it."""
    state = {f"model/{name}": value for name, value in named_model_state(model).items()}
    state |= {f"optimizer/{name}": value for name, value in named_optimizer_state(model, optimizer).items()}
    return {n: (v.full_tensor() if isinstance(v, DTensor) else v).detach().clone() for n, v in state.items()}


def stored_state(path: Path) -> dict[str, Tensor]:
    """What `keep_state` wrote."""
    return load_file(path)


def keep_state(path: Path, state: dict[str, Tensor], is_main: bool) -> None:
    """Write down what a later process must find again."""
    if is_main:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


def check_state(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    wrong = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
    assert not wrong, wrong


def open_group(ranks: list[int] | None = None) -> Peers:
    """Peers of the given ranks of the world (None = all), with a group of their own; every process must call it."""
    if not dist.is_initialized():
        return ALONE
    ranks = list(range(dist.get_world_size())) if ranks is None else ranks
    group: Any = dist.new_group(ranks, backend="gloo")
    rank = dist.get_rank()
    return Peers(ranks.index(rank), len(ranks), group) if rank in ranks else Peers(-1, 0, None)
