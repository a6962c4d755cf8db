"""FSDP2 (torch's fully_shard): matrices are sharded layer by layer, everything smaller stays whole in every process.

Source: Zhao et al. 2023, "PyTorch FSDP". A unit is a decoder layer, an encoder layer, or the rest of the model
(embedding, head, the encoder's input projection). Norm scales, biases, gates and smear weights are under a thousandth
of the weights: they stay plain float32 parameters, so that norms compute exactly what they compute without FSDP, and
their gradients are averaged once per step (retro.train.parallel.gradients).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from retro.config.parallel import ParallelConfig
from retro.model.retro import RetroModel


def shard_model(model: RetroModel, mesh: DeviceMesh, config: ParallelConfig, precision: str) -> None:
    """Shard `model` in place over `mesh` ([shard] or [replicate, shard]); parameters on the meta device stay there.

    With precision "bf16" layers are gathered in bfloat16, which is what autocast makes of float32 weights before each
    product; the rest is gathered in float32 as autocast leaves it. Casting activations stays autocast's.
    """
    model.lockstep = True
    reduce = torch.bfloat16 if config.reduce == "bf16" else torch.float32
    gathered = torch.bfloat16 if precision == "bf16" else None
    whole = {parameter for parameter in model.parameters() if parameter.ndim < 2}
    settings: dict[str, Any] = {"mesh": mesh, "ignored_params": whole}
    in_layers = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=reduce, cast_forward_inputs=False)
    for unit in units(model):
        if any(parameter.ndim >= 2 for parameter in unit.parameters()):
            fully_shard(unit, reshard_after_forward=config.reshard_after_forward, mp_policy=in_layers, **settings)
    in_float32 = MixedPrecisionPolicy(reduce_dtype=reduce, cast_forward_inputs=False)
    # Needed from the first operation of the forward pass to the last of the backward pass: never freed between.
    fully_shard(model, reshard_after_forward=False, mp_policy=in_float32, **settings)


def units(model: RetroModel) -> list[nn.Module]:
    """The modules that are gathered as one each, besides the model itself; all of them run in every forward pass."""
    encoder = [] if model.encoder is None or model.retrieval_is_off else list(model.encoder.layers)
    return [*model.layers, *encoder]


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard_model` was applied."""
    return isinstance(model, FSDPModule)


def set_micro_batch(model: nn.Module, exchange: bool, free: bool) -> None:
    """For the next backward pass: whether gradients are exchanged after it, and whether gathered weights are freed then
    or kept for the next micro-batch."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(exchange)
    model.set_reshard_after_backward(free)


def reshard(model: nn.Module) -> None:
    """Free the gathered weights; `model.parameters()` are the sharded ones afterwards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def gathered_for_evaluation(model: nn.Module) -> Iterator[None]:
    """Context of forward passes without gradients: compiled layers run as they are written (they would be compiled once
    more), and no weights stay gathered."""
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        reshard(model)
