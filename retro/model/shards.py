"""Filling parameters of which a process may hold a part only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retro.nn.linear import Linear


def row_orders(model: nn.Module) -> dict[str, Tensor]:
    """The `row_order` of every parameter that has one, by its name in the state dict."""
    return {
        f"{prefix}.{name}": module.row_order
        for prefix, module in model.named_modules()
        if isinstance(module, Linear) and module.row_order is not None
        for name, _ in module.named_parameters(recurse=False)
    }


def local_part(parameter: Tensor) -> Tensor:
    """This process's part of a DTensor, through which gradients flow to it; any other tensor itself."""
    to_local = getattr(parameter, "to_local", None)  # torch.distributed.tensor is not imported where nothing needs it
    return parameter if to_local is None else to_local()


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
    if hasattr(target, "device_mesh"):
        _fill_shard(target, whole)
    else:
        target.copy_(whole)


def _fill_shard(target: Tensor, whole: Tensor) -> None:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Replicate, Shard, _StridedShard

    assert isinstance(target, DTensor)
    coordinate = target.device_mesh.get_coordinate()
    if coordinate is None:
        return  # a process outside the mesh has no part
    steps = []
    for dimension, placement in enumerate(target.placements):
        if isinstance(placement, Shard | _StridedShard):
            steps.append((isinstance(placement, _StridedShard), dimension, placement.dim))
        elif not isinstance(placement, Replicate):
            raise ValueError(f"expected a tensor that is sharded or replicated, found {placement}")
    part = whole
    # A strided shard is a part of what the dimensions behind it leave (FSDP over tensor parallelism).
    for _, dimension, axis in sorted(steps):
        parts = torch.chunk(part, target.device_mesh.size(dimension), dim=axis)
        at = coordinate[dimension]
        part = parts[at] if at < len(parts) else part.narrow(axis, 0, 0)
    target.to_local().copy_(part)
