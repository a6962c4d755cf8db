"""Vocabulary projection and cross-entropy in one step, a block of positions at a time.

The full [tokens, V] logits and their gradient are never held: for each block of positions the logits are made, turned into
losses and (when training) at once into the gradients of the hidden states and of the weight, and dropped. The number of
matrix products is that of the plain computation: nothing is computed twice.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: Positions per block. Chosen by benchmarks/step_time.py --cross-entropy; see docs of that script.
DEFAULT_BLOCK = 512


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, block: int = DEFAULT_BLOCK
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of softmax(hidden @ weight.T) against `targets`.

    hidden float [T, D]; weight float [V, D]; targets int64 [T] in 0..V-1; `block` positions are treated at a time (speed
    and memory only). Returns (loss_sum, losses): the sum, a differentiable float32 scalar (float64 for float64), and the
    losses [T] in nats, not differentiable. Under autocast the products run in its dtype, the softmax in float32.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, targets, block)
    losses = torch.cat(
        [_log_probabilities(h, weight).gather(1, t[:, None]).neg() for h, t in _blocks(hidden, targets, block)]
        or [hidden.new_zeros((0, 1), dtype=_loss_dtype(hidden))]
    ).squeeze(1)
    return losses.sum(), losses


def _blocks(hidden: Tensor, targets: Tensor, block: int) -> list[tuple[Tensor, Tensor]]:
    return [(hidden[i : i + block], targets[i : i + block]) for i in range(0, hidden.shape[0], block)]


def _loss_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def _log_probabilities(hidden: Tensor, weight: Tensor) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        return F.log_softmax(hidden @ weight.t(), dim=-1, dtype=_loss_dtype(hidden))


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are made in the forward pass for an upstream gradient of 1, and scaled in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, block: int) -> tuple[Tensor, Tensor]:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        exact = _loss_dtype(hidden)
        losses = torch.empty(hidden.shape[0], dtype=exact, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # Summed over blocks in float32 even if the products are bfloat16.
        grad_weight = torch.zeros_like(weight, dtype=exact) if need_weight else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], block):
                rows = slice(start, start + block)
                part, labels = hidden[rows], targets[rows, None]
                scores = F.log_softmax(part @ weight.t(), dim=-1, dtype=exact)
                picked = scores.gather(1, labels)
                losses[rows] = picked.squeeze(1).neg()
                # d loss / d logits = softmax - one_hot, in place of the log-probabilities.
                scores.exp_()
                scores.scatter_(1, labels, picked.exp() - 1.0)
                gradient = scores.to(hidden.dtype)
                if grad_hidden is not None:
                    torch.mm(gradient, weight, out=grad_hidden[rows])
                if grad_weight is not None:
                    if gradient.dtype == grad_weight.dtype:
                        grad_weight.addmm_(gradient.t(), part)
                    else:
                        grad_weight += gradient.t() @ part
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, grad_sum: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad_sum.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * grad_sum).to(ctx.weight_dtype),
            None,
            None,
        )
