"""Filling parameters of which a process may hold a part only."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from retro.nn.linear import Linear
from retro.nn.shards import cut_part, is_distributed, local_part

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def row_orders(model: nn.Module) -> dict[str, Tensor]:
    """The `row_order` of every parameter that has one, by its name in the state dict."""
    return {
        f"{prefix}.{name}": module.row_order
        for prefix, module in model.named_modules()
        if isinstance(module, Linear) and module.row_order is not None
        for name, _ in module.named_parameters(recurse=False)
    }


@torch.no_grad()
def fill_parameter(target: Tensor, whole: Tensor, row_order: Tensor | None = None) -> None:
    """Copy a tensor of the global shape into `target`: a plain tensor, or a DTensor sharded and replicated over a mesh
    of any dimensions, of which this process's part is filled. Nothing is communicated; dtypes are converted.

    row_order: that of the parameter's layer (`retro.nn.linear.Linear`). Raises ValueError for another shape, and for a
    placement that holds partial sums.
    """
    if target.shape != whole.shape:
        raise ValueError(f"expected a tensor of shape {list(target.shape)}, found {list(whole.shape)}")
    if row_order is not None:
        whole = whole.index_select(0, row_order.to(whole.device))
    if not is_distributed(target):
        target.copy_(whole)
    elif cast("DTensor", target).device_mesh.get_coordinate() is not None:  # a process outside the mesh has no part
        local_part(target).copy_(cut_part(whole, target))
