"""AdamW (Loshchilov and Hutter 2019) with weight decay on matrices only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from retro.optim.groups import decay_groups, split_by_mesh


def build_adamw(
    model: nn.Module, *, learning_rate: float, weight_decay: float, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `model`, in the groups of `decay_groups`.

    The fused implementation is used where the parameters' device has one (CPU and CUDA do): the same update in one
    pass over memory.
    """
    parameters = dict(model.named_parameters())
    decayed, plain = ([parameters[name] for name in names] for names in decay_groups(model))
    return adamw_over(decayed, plain, learning_rate=learning_rate, weight_decay=weight_decay, betas=betas, eps=eps)


def adamw_over(
    decayed: Sequence[Tensor],
    plain: Sequence[Tensor],
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
) -> torch.optim.AdamW:
    """AdamW over parameters with and without weight decay, plain or sharded ones."""
    groups = [{"params": group, "weight_decay": weight_decay} for group in split_by_mesh(decayed)]
    groups += [{"params": group, "weight_decay": 0.0} for group in split_by_mesh(plain)]
    fused = all(p.device.type in ("cpu", "cuda") for p in (*decayed, *plain))
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=fused)
