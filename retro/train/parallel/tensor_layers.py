"""Layers of which each process of a tensor-parallel group computes a share, and the two sums that join the shares.

Source: Shoeybi et al. 2019, "Megatron-LM", section 3: a column-parallel layer (its output features are shared out)
feeds a row-parallel one (its input features are shared out). Activations between blocks are whole and equal in all
processes. Parameters that are shared out are DTensors of the whole shape, with the names they have without; products
use the local parts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from retro.nn.attention import KeySmear
from retro.nn.linear import Linear
from retro.nn.norm import RMSNorm
from retro.nn.shards import local_part


class ColumnLinear(Linear):
    """The rows of `whole` shared out: the same input in all processes -> this process's share of the output features.

    Of a fused layer each part is shared out for itself; the parameters hold the shares one below the other, in the
    order that `row_order` tells.
    """

    def __init__(self, whole: Linear, mesh: DeviceMesh) -> None:
        with torch.device("meta"):
            super().__init__(whole.in_features, whole.out_features, whole.bias is not None, whole.parts)
        self.group = mesh.get_group()
        shares = [shared_rows(self.parts, rank, mesh.size()) for rank in range(mesh.size())]
        self.row_order = torch.cat(shares) if len(self.parts) > 1 else None
        own = shares[mesh.get_local_rank()]
        self.weight = sharded(whole.weight, own, 0, mesh)
        if whole.bias is not None:
            self.bias = sharded(whole.bias, own, 0, mesh)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features / processes]; the gradient of x is summed over the processes."""
        bias = None if self.bias is None else local_part(self.bias)
        return F.linear(sum_gradient(x, self.group), local_part(self.weight), bias)


class RowLinear(Linear):
    """The columns of `whole` shared out: this process's share of the input features -> the output, equal in all."""

    def __init__(self, whole: Linear, mesh: DeviceMesh) -> None:
        with torch.device("meta"):
            super().__init__(whole.in_features, whole.out_features, whole.bias is not None, whole.parts)
        self.group = mesh.get_group()
        own = shared_rows((whole.in_features,), mesh.get_local_rank(), mesh.size())
        self.weight = sharded(whole.weight, own, 1, mesh)
        if whole.bias is not None:
            self.bias = whole.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features / processes] -> [..., out_features]. The bias is added once, to the sum."""
        out = sum_output(F.linear(x, local_part(self.weight)), self.group)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class SharedNorm(RMSNorm):
    """An RMSNorm of single heads, whole in all processes: its scale serves the heads of each."""

    def __init__(self, whole: RMSNorm, mesh: DeviceMesh) -> None:
        with torch.device("meta"):
            super().__init__(whole.width, whole.eps)
        self.group = mesh.get_group()
        self.weight = whole.weight

    def scale(self) -> Tensor:
        """The factors [width]; their gradient is summed over the processes."""
        return sum_gradient(self.weight, self.group)


class SharedKeySmear(KeySmear):
    """Smearing of this process's share of the keys' heads."""

    def __init__(self, whole: KeySmear, mesh: DeviceMesh) -> None:
        super().__init__(0)
        own = shared_rows((whole.weight.shape[0],), mesh.get_local_rank(), mesh.size())
        self.weight = sharded(whole.weight, own, 0, mesh)

    def head_weights(self) -> Tensor:
        """The weights of this process's heads, [Hkv / processes]."""
        return local_part(self.weight)


def shared_rows(parts: tuple[int, ...], rank: int, world: int) -> Tensor:
    """Indices, int64, of the share of process `rank` of `world` in fused parts of these sizes, which `world` divides:
    an equal range of each part."""
    begins = [sum(parts[:i]) for i in range(len(parts))]
    ranges = [(begin + rank * size // world, size // world) for begin, size in zip(begins, parts, strict=True)]
    return torch.cat([torch.arange(start, start + count) for start, count in ranges])


def sharded(whole: Tensor, own: Tensor, dimension: int, mesh: DeviceMesh) -> nn.Parameter:
    """A DTensor parameter whose local part is a copy of the indices `own` of `whole`; the memory of `whole` is not
    held."""
    part = whole.detach().index_select(dimension, own.to(whole.device))
    spread = DTensor.from_local(part.contiguous(), mesh, [Shard(dimension)], run_check=False)
    return nn.Parameter(spread, requires_grad=whole.requires_grad)


def sum_gradient(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """x, equal in all processes; its gradient is the sum of what the processes have for it."""
    out: Tensor = _SumGradient.apply(x, group)
    return out


def sum_output(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of x over the processes, in all of them; each has the whole gradient of it for its x."""
    out: Tensor = _SumOutput.apply(x, group)
    return out


class _SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _summed(grad, ctx.group), None


class _SumOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _summed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    out = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(out, group=group)
    return out
