"""Building a model where it is to be trained: each process holds its part only, from the beginning on."""

from __future__ import annotations

import torch

from retro.config.model import ModelConfig
from retro.model.retro import RetroModel
from retro.train.distributed import Processes


def build_model(config: ModelConfig, processes: Processes, seed: int) -> RetroModel:
    """The model on the processes' device with initial weights from `seed`, the same numbers for any layout; sharded
    and cut for tensor parallelism as the processes are laid out.

    Where weights are sharded no process ever holds them all: the model is outlined without memory, cut, and filled
    one whole matrix at a time. Raises ConfigError for a model that tensor parallelism cannot divide.
    """
    torch.manual_seed(seed)
    if processes.mesh is None:
        return RetroModel(config).to(processes.device)
    with torch.device("meta"):
        model = RetroModel(config)
    if processes.tensor_world > 1:
        from retro.train.parallel.mesh import TENSOR
        from retro.train.parallel.tensor_parallel import apply_tensor_parallel

        apply_tensor_parallel(model, processes.mesh[TENSOR])
    if processes.sharded:
        from retro.train.parallel.fsdp import shard_model
        from retro.train.parallel.mesh import shard_mesh

        shard_model(model, shard_mesh(processes.mesh, processes.layout), processes.parallel, processes.precision)
    model.to_empty(device=processes.device)
    model.draw_weights()
    return model
