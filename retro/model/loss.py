"""What the model returns, and the loss over the scored positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from retro.nn.cross_entropy import linear_cross_entropy


@dataclass(frozen=True)
class ModelOutput:
    """`logits` when no targets were given; the loss fields when they were."""

    #: float [B, N, V].
    logits: Tensor | None = None
    #: Scalar: mean (or sum, by `reduction`) over the scored tokens, nats. 0 if none is scored.
    loss: Tensor | None = None
    #: float32 [B, N], nats, 0 where not scored; not differentiable.
    token_losses_BN: Tensor | None = None
    #: Scalar sum over the scored tokens, nats; differentiable.
    loss_sum: Tensor | None = None
    #: int64 scalar.
    num_scored: Tensor | None = None


def token_loss(
    hidden: Tensor,
    weight: Tensor,
    targets_BN: Tensor,
    loss_mask_BN: Tensor | None,
    reduction: Literal["mean", "sum"],
    static: bool = False,
) -> ModelOutput:
    """Cross-entropy of the scored positions; the others do not go through the vocabulary projection at all.

    hidden [B, N, D], weight [V, D]. static: all go through it, so that shapes do not depend on the mask, and the others
    are left out of the sum.
    """
    if targets_BN.shape != hidden.shape[:2]:
        raise ValueError(f"targets_BN: expected shape {list(hidden.shape[:2])}, found {list(targets_BN.shape)}")
    if loss_mask_BN is not None and loss_mask_BN.shape != targets_BN.shape:
        raise ValueError(f"loss_mask_BN: expected shape {list(targets_BN.shape)}, found {list(loss_mask_BN.shape)}")
    if static:
        return _static_loss(hidden, weight, targets_BN, loss_mask_BN, reduction)
    states, targets = hidden.flatten(0, 1), targets_BN.flatten()
    scored = None
    if loss_mask_BN is not None:
        scored = loss_mask_BN.flatten().nonzero().squeeze(1)
        if scored.numel() == targets.numel():
            scored = None
        else:
            states, targets = states.index_select(0, scored), targets.index_select(0, scored)
    loss_sum, losses = linear_cross_entropy(states, weight, targets)
    num_scored = targets.numel()
    if scored is not None:
        losses = losses.new_zeros(targets_BN.numel()).index_copy(0, scored, losses)
    return ModelOutput(
        loss=loss_sum / max(num_scored, 1) if reduction == "mean" else loss_sum,
        token_losses_BN=losses.view(targets_BN.shape),
        loss_sum=loss_sum,
        num_scored=torch.tensor(num_scored, device=hidden.device),
    )


def _static_loss(
    hidden: Tensor, weight: Tensor, targets_BN: Tensor, loss_mask_BN: Tensor | None, reduction: Literal["mean", "sum"]
) -> ModelOutput:
    targets = targets_BN.flatten()
    scored = None if loss_mask_BN is None else loss_mask_BN.flatten()
    if scored is not None:
        targets = targets.masked_fill(~scored, 0)  # unscored targets may hold anything
    loss_sum, losses = linear_cross_entropy(hidden.flatten(0, 1), weight, targets, scored=scored)
    num_scored = torch.tensor(targets.numel(), device=hidden.device) if scored is None else scored.sum()
    return ModelOutput(
        loss=loss_sum / num_scored.clamp(min=1) if reduction == "mean" else loss_sum,
        token_losses_BN=losses.view(targets_BN.shape),
        loss_sum=loss_sum,
        num_scored=num_scored,
    )
