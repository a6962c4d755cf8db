"""Vocabulary projection and cross-entropy in one step, a block of positions at a time.

The full [tokens, V] logits and their gradient are never held: for each block of positions the logits are made, turned
into losses and (when training) at once into the gradients of the hidden states and of the weight, and dropped. The
number of matrix products is that of the plain computation: nothing is computed twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Logits held at a time when no block is given, on a CPU. 2^21 (8 MiB in float32) was the fastest or equal of 2^19 ..
#: 2^25 for vocabularies of 4,096 and 16,384 (width 256, float32 and bfloat16): smaller blocks make thin products,
#: larger ones leave the cache.
LOGITS_PER_BLOCK = 2**21
#: Elsewhere (256 MiB in float32). Each block reads the whole weight three times and starts a dozen kernels, and a
#: compiled program repeats the loop's body: with blocks of a CPU's size, 41 positions at a vocabulary of 50,257, an
#: accelerator would wait for its memory.
LOGITS_PER_BLOCK_OF_ACCELERATOR = 2**26


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, block: int | None = None, scored: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of softmax(hidden @ weight.T) against `targets`.

    hidden float [T, D]; weight float [V, D]; targets int64 [T] in 0..V-1; `block` positions are treated at a time
    (speed and memory only; None = as positions_per_block says); scored bool [T]: the others count 0 and get no
    gradient, None = all are. Returns (loss_sum, losses): the sum, a differentiable float32 scalar (float64 for
    float64), and the losses [T] in nats, not differentiable. Under autocast the products run in its dtype, the softmax
    in float32.
    """
    device = hidden.device.type
    if block is None:
        block = positions_per_block(device, weight.shape[0])
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, targets, block, scored)
    losses = torch.empty(hidden.shape[0], dtype=_loss_dtype(hidden), device=hidden.device)
    with torch.autocast(device, enabled=False):
        for start in range(0, hidden.shape[0], block):
            rows = slice(start, start + block)
            losses[rows] = _losses_and_exponentials(hidden[rows], weight, targets[rows])[0]
    if scored is not None:
        losses = losses.masked_fill_(~scored, 0.0)
    return losses.sum(), losses


def positions_per_block(device: str, vocabulary: int) -> int:
    """Positions that are treated at a time where nothing is said; device: type, as in torch.device.type."""
    return max(1, (LOGITS_PER_BLOCK if device == "cpu" else LOGITS_PER_BLOCK_OF_ACCELERATOR) // vocabulary)


def _loss_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def _losses_and_exponentials(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [t], exp(logits - largest) [t, V] and its sums over V [t, 1], in the loss dtype.

    Written out because torch's log_softmax takes several times as long on a CPU as these passes together.
    """
    logits = hidden @ weight.t()
    dtype = _loss_dtype(hidden)
    picked = logits.gather(1, targets[:, None]).to(dtype)
    peak = logits.amax(dim=1, keepdim=True).to(dtype)
    shifted = logits.sub_(peak) if logits.dtype == dtype else logits - peak
    exponentials = shifted.exp_()
    total = exponentials.sum(dim=1, keepdim=True)
    return (total.log() + peak - picked).squeeze(1), exponentials, total


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are made in the forward pass for an upstream gradient of 1, and scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, block: int, scored: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        exact = _loss_dtype(hidden)
        losses = torch.empty(hidden.shape[0], dtype=exact, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # Summed over blocks in float32 even if the products are bfloat16.
        grad_weight = torch.zeros_like(weight, dtype=exact) if need_weight else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], block):
                rows = slice(start, start + block)
                part, labels = hidden[rows], targets[rows]
                losses[rows], shares, total = _losses_and_exponentials(part, weight, labels)
                # d loss / d logits = softmax - one_hot.
                shares.mul_(total.reciprocal_())
                shares.scatter_add_(1, labels[:, None], shares.new_full((len(labels), 1), -1.0))
                if scored is not None:
                    shares.masked_fill_(~scored[rows, None], 0.0)
                gradient = shares.to(hidden.dtype)
                if grad_hidden is not None:
                    torch.mm(gradient, weight, out=grad_hidden[rows])
                if grad_weight is not None:
                    if gradient.dtype == grad_weight.dtype:
                        grad_weight.addmm_(gradient.t(), part)
                    else:
                        grad_weight += gradient.t() @ part
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        if scored is not None:
            losses.masked_fill_(~scored, 0.0)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, grad_sum: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad_sum.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * grad_sum).to(ctx.weight_dtype),
            None,
            None,
            None,
        )
