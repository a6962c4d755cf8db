"""AdamW (Loshchilov and Hutter 2019) with weight decay on matrices only."""

from __future__ import annotations

import torch
from torch import nn


def decay_groups(model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the trainable parameters with and without weight decay, in the model's order; tied ones once.

    Decayed: everything with two dimensions or more, the embedding included: without decay its norm grows for the whole
    run, and a tied embedding is the output matrix. Not decayed: norm scales, biases and per-head scalars, for which 0
    is no neutral value.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [name for name, p in named if p.ndim >= 2], [name for name, p in named if p.ndim < 2]


def build_adamw(
    model: nn.Module, *, learning_rate: float, weight_decay: float, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `model`, in the groups of `decay_groups`.

    The fused implementation is used where the parameters' device has one (CPU and CUDA do): the same update in one
    pass over memory.
    """
    parameters = dict(model.named_parameters())
    decayed, plain = decay_groups(model)
    groups = [
        {"params": [parameters[name] for name in decayed], "weight_decay": weight_decay},
        {"params": [parameters[name] for name in plain], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=learning_rate,
        betas=betas,
        eps=eps,
        fused=all(p.device.type in ("cpu", "cuda") for p in parameters.values()),
    )
