"""The gradient's norm by part of the model: which part a spike comes from."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from retro.train.parallel.gradients import groups_of_parts, local_part

PARTS = ("embedding", "decoder", "cross_attention", "encoder", "head")


def part_of(name: str) -> str:
    """The part, one of PARTS, that the model's parameter `name` belongs to. Tied weights are the embedding's; the norm
    before the projection to the vocabulary is the decoder's."""
    first = name.split(".")[0]
    if first == "encoder":
        return "encoder"
    if ".cross_attention." in name:
        return "cross_attention"
    if first == "head":
        return "head"
    return "embedding" if first in ("embedding", "positions") else "decoder"


@torch.no_grad()
def norms_by_part(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, float]:
    """Norm of the gradient of each part that has one, over all processes; their squares add up to that of the whole.

    One pass over the gradients, one exchange per kind of sharding, one wait for the device. All processes must call it.
    """
    found = [(part_of(name), p) for name, p in parameters if p.grad is not None]
    if not found:
        return {}
    norms = torch._foreach_norm([local_part(p.grad) for _, p in found if p.grad is not None])
    parts = [part for part in PARTS if any(part == own for own, _ in found)]
    # By the processes that a parameter is spread over: [parts], a square each.
    squares: dict[tuple[dist.ProcessGroup, ...], list[Tensor | None]] = {}
    for (part, parameter), norm in zip(found, norms, strict=True):
        row = squares.setdefault(groups_of_parts(parameter), [None] * len(parts))
        before, own = row[parts.index(part)], norm.double().square()
        row[parts.index(part)] = own if before is None else before + own
    device = norms[0].device
    total = torch.zeros(len(parts), dtype=torch.float64, device=device)
    for groups, row in squares.items():
        summed = torch.stack([torch.zeros((), dtype=torch.float64, device=device) if s is None else s for s in row])
        for group in groups:
            dist.all_reduce(summed, group=group)
        total += summed
    return {part: math.sqrt(value) for part, value in zip(parts, total.tolist(), strict=True)}
