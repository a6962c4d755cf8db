"""The tensors of a model and its optimizer by canonical names, as checkpoints save and load them.

A value is a plain tensor, equal in all processes; a DTensor; or an object of torch.distributed.checkpoint's protocol
(`__create_write_items__`, `__create_chunk_list__`, `__get_tensor_shard__`) that stands for a part of a tensor. Names
and global shapes are those of one process without parallelism. Nothing here communicates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from retro.model.shards import row_orders
from retro.train.parallel.row_pieces import RowPieces


def named_model_state(model: nn.Module) -> dict[str, Any]:
    """Parameters and buffers by name; they share memory with the model, so loading into them fills it."""
    orders = row_orders(model)
    return {name: _placed(value, orders.get(name)) for name, value in model.state_dict().items()}


def named_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, create: bool = False) -> dict[str, Any]:
    """State of the optimizer, `<parameter>.<state>` in the order of the model's parameters; 0-d ones are plain tensors.

    create: an optimizer that has not stepped yet gets its state (zeros of the right placement) first, for loading; the
    weights stay as they are, gradients are dropped. Otherwise it has none. Raises TypeError for an optimizer whose
    state is not all tensors. Hyperparameters are not state: they come from the configuration.
    """
    if create and not optimizer.state:
        _create_state(optimizer)
    out, orders = {}, row_orders(model)
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise TypeError(f"optimizer state {key!r} of {name}: expected a tensor, found {type(value).__name__}")
            order = orders.get(name) if value.shape == parameter.shape else None
            out[f"{name}.{key}"] = _placed(value.detach(), order)
    return out


def fill_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, entries: Mapping[str, Any]) -> None:
    """Make `entries`, named as `named_optimizer_state` names them, the optimizer's state, without a copy.

    None at all = as if it had never stepped. Raises KeyError for an entry of no parameter.
    """
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for full, value in entries.items():
        name, _, key = full.rpartition(".")
        optimizer.state[parameters[name]][key] = value.tensor if isinstance(value, RowPieces) else value


def _placed(tensor: Tensor, order: Tensor | None) -> Any:
    """The tensor, or what tells the places of its rows where they are not in order."""
    return tensor if order is None else RowPieces(cast(DTensor, tensor), order)


@torch.no_grad()
def _create_state(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer itself make its state, by a step of rate 0 along a gradient of zeros."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for parameter in parameters:
        for value in optimizer.state[parameter].values():
            value.zero_()  # the step has counted
