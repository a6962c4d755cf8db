"""Gradients of a model whose parameters are plain, sharded, or both: averaging, norm, clipping."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

#: Bytes of gradients that are sent together.
BUCKET_BYTES = 64 * 2**20
#: Buckets under way at a time: what is held besides the gradients.
_IN_FLIGHT = 2


@torch.no_grad()
def scale_and_clip(parameters: Iterable[nn.Parameter], factor: float, limit: float | None) -> float:
    """Multiply all gradients by `factor`, then clip them so that their norm is at most `limit`; returns the norm in
    between, over all parts of all parameters, the same number in every process.

    Parts of a DTensor count once each, copies once. Norms of parts are float32, their sum float64. All processes must
    call this. The clipping is that of torch.nn.utils.clip_grad_norm_.
    """
    with_gradient = [p for p in parameters if p.grad is not None]
    gradients = [local_part(p.grad) for p in with_gradient if p.grad is not None]
    if not gradients:
        return 0.0
    torch._foreach_mul_(gradients, factor)
    norms = torch._foreach_norm(gradients)
    by_groups: dict[tuple[dist.ProcessGroup, ...], list[Tensor]] = {}
    for parameter, norm in zip(with_gradient, norms, strict=True):
        by_groups.setdefault(groups_of_parts(parameter), []).append(norm)
    squares = {groups: torch.stack(own).double().square().sum() for groups, own in by_groups.items()}
    for group in dict.fromkeys(group for groups in squares for group in groups):
        concerned = [groups for groups in squares if group in groups]
        summed = torch.stack([squares[groups] for groups in concerned])
        dist.all_reduce(summed, group=group)
        squares.update(zip(concerned, summed, strict=True))
    total = math.sqrt(math.fsum(float(square) for square in squares.values()))
    if limit is not None:
        # Not a number stays one in the gradients too: the caller decides what becomes of the step.
        shrink = limit / (total + 1e-6)
        if not shrink >= 1.0:
            torch._foreach_mul_(gradients, shrink)
    return total


def groups_of_parts(parameter: nn.Parameter) -> tuple[dist.ProcessGroup, ...]:
    """The process groups over which the parts of the parameter are spread; none for one that every process has."""
    if not isinstance(parameter, DTensor):
        return ()
    mesh = parameter.device_mesh
    return tuple(mesh.get_group(i) for i, placement in enumerate(parameter.placements) if not placement.is_replicate())


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a DTensor (the same memory), or the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], group: dist.ProcessGroup | None) -> None:
    """Average the gradients over the processes of `group` (None = all). Parameters without one take part with zeros and
    have zeros afterwards. All processes of the group must call this with the same parameters."""
    world = dist.get_world_size(group)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if world == 1:
        return
    pending: deque[tuple[dist.Work | None, Tensor, list[Tensor]]] = deque()
    for bucket in _buckets([local_part(p.grad) for p in parameters if p.grad is not None]):
        if len(pending) == _IN_FLIGHT:
            _receive(*pending.popleft(), world)
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        pending.append((dist.all_reduce(flat, group=group, async_op=True), flat, bucket))
    for sent in pending:
        _receive(*sent, world)


def _receive(work: dist.Work | None, flat: Tensor, bucket: list[Tensor], world: int) -> None:
    if work is not None:
        work.wait()
    flat.div_(world)
    parts = flat.split([gradient.numel() for gradient in bucket])
    torch._foreach_copy_(bucket, [part.view(g.shape) for part, g in zip(parts, bucket, strict=True)])


def _buckets(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """In order, of one dtype each, and of at most BUCKET_BYTES unless one gradient is larger."""
    buckets: list[list[Tensor]] = []
    held = 0
    for gradient in gradients:
        size = gradient.numel() * gradient.element_size()
        if not buckets or held + size > BUCKET_BYTES or buckets[-1][0].dtype != gradient.dtype:
            buckets.append([])
            held = 0
        buckets[-1].append(gradient)
        held += size
    return buckets


@torch.no_grad()
def fill_missing_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give trainable parameters that no batch used gradients of zeros, as without sharding: an optimizer treats no
    gradient differently."""
    for parameter in parameters:
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def is_reduced_by_fsdp(parameter: nn.Parameter) -> bool:
    """Whether FSDP averages the parameter's gradient: it is sharded by shard_model, which leaves out all with fewer
    than two dimensions."""
    return parameter.ndim >= 2
