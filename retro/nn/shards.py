"""DTensors by their parts: the part of a whole tensor that a process holds, and the whole of its part.

The order of cuts is that of FSDP over tensor parallelism: a strided shard is a part of what the dimensions of the mesh
behind it leave. Torch's own redistribution of such tensors gathers too little or warns (torch 2.13).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def is_distributed(tensor: Tensor) -> bool:
    """Whether this is a DTensor; without importing torch.distributed.tensor where nothing needs it."""
    return hasattr(tensor, "device_mesh")


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a DTensor, through which gradients flow to it; any other tensor itself."""
    return tensor.to_local() if is_distributed(tensor) else tensor  # type: ignore[attr-defined]


def cut_part(whole: Tensor, like: Any) -> Tensor:
    """The part, a view, of the tensor `whole` that this process holds of the DTensor `like` of that shape. Nothing is
    communicated. Raises ValueError for a placement that holds partial sums."""
    coordinate = like.device_mesh.get_coordinate()
    part = whole
    for dimension, axis in _cuts(like):
        parts = torch.chunk(part, like.device_mesh.size(dimension), dim=axis)
        at = coordinate[dimension]
        part = parts[at] if at < len(parts) else part.narrow(axis, 0, 0)
    return part


def gather_whole(tensor: Tensor) -> Tensor:
    """All of a DTensor, in every process; any other tensor itself. The processes of its mesh must all call this.
    Raises ValueError for a placement that holds partial sums."""
    if not is_distributed(tensor):
        return tensor
    import torch.distributed as dist

    sharded: Any = tensor
    mesh, coordinate = sharded.device_mesh, sharded.device_mesh.get_coordinate()
    sizes, steps = list(tensor.shape), []
    for dimension, axis in _cuts(sharded):
        size, most = sizes[axis], -(-sizes[axis] // mesh.size(dimension))
        steps.append((dimension, axis, size, most))
        sizes[axis] = min(most, max(0, size - most * coordinate[dimension]))
    part: Tensor = sharded.to_local()
    for dimension, axis, size, most in reversed(steps):
        padding = [0, 0] * (part.ndim - 1 - axis) + [0, most - part.shape[axis]]
        own = F.pad(part, padding).contiguous()
        parts = [torch.empty_like(own) for _ in range(mesh.size(dimension))]
        dist.all_gather(parts, own, group=mesh.get_group(dimension))
        part = torch.cat(parts, dim=axis).narrow(axis, 0, size)
    return part


def _cuts(tensor: Any) -> list[tuple[int, int]]:
    """Dimensions of the mesh and axes of the tensor, in the order in which they cut it."""
    from torch.distributed.tensor.placement_types import Replicate, Shard, _StridedShard

    cuts = []
    for dimension, placement in enumerate(tensor.placements):
        if isinstance(placement, Shard | _StridedShard):
            cuts.append((isinstance(placement, _StridedShard), dimension, placement.dim))
        elif not isinstance(placement, Replicate):
            raise ValueError(f"expected a tensor that is sharded or replicated, found {placement}")
    return [(dimension, axis) for _, dimension, axis in sorted(cuts)]
