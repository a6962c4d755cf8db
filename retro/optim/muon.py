"""Muon: momentum whose matrices are made orthogonal before they are applied.

Sources: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks" (the update, Newton-Schulz
iteration); Liu et al. 2025, "Muon is scalable for LLM training", arXiv 2502.16982 (weight decay, and the scale of the
update: equation 4). For a matrix that is neither fused nor sharded the update is that of torch.optim.Muon with
adjust_lr_fn="match_rms_adamw".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from retro.nn.linear import Linear
from retro.nn.shards import cut_part, gather_whole, is_distributed, local_part
from retro.optim.adamw import adamw_over
from retro.optim.combined import CombinedOptimizer
from retro.optim.groups import decay_groups

#: Of the momentum, an exponential mean of gradients with Nesterov's look ahead (Jordan et al. 2024).
MOMENTUM = 0.95
#: Quintic iteration with the steepest slope at 0: five of them bring singular values from 0.01 on into 0.7..1.2.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
#: Root mean square of an AdamW update, per learning rate (Liu et al. 2025, section 2.2).
ADAMW_RMS = 0.2


@dataclass(frozen=True)
class Fused:
    """How a parameter is made of matrices: rows of each, top to bottom, and the order in which the parameter holds the
    rows (see retro.nn.linear.Linear)."""

    parts: tuple[int, ...]
    row_order: Tensor | None


class Muon(Optimizer):
    """Muon over matrices [rows, columns], plain tensors or DTensors.

    fused: of the parameters that are several matrices, one below the other; each of them is made orthogonal for itself
    (queries, keys and values; gate and up). lr is AdamW's: an update has the root mean square ADAMW_RMS * lr whatever
    the shape, so learning rate and weight decay of an AdamW run can be kept. State: `momentum_buffer`, of the
    parameter's shape and sharding.

    A sharded matrix is gathered in bfloat16 for the step, one at a time, and made orthogonal in every process that
    holds a part: the same result as in one process, to the rounding of bfloat16.
    """

    def __init__(
        self, parameters: Sequence[Tensor], lr: float, weight_decay: float, fused: Mapping[Tensor, Fused] | None = None
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self._fused = dict(fused or {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have a gradient. closure: as torch.optim.Optimizer has it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, float(group["lr"]), group["weight_decay"])
        return loss

    def _update(self, parameter: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - MOMENTUM)
        if lr == 0.0:
            return  # nothing moves
        ahead = gather_whole(parameter.grad.lerp(momentum, MOMENTUM).bfloat16())
        update = orthogonal_parts(ahead, self._fused.get(parameter, Fused((parameter.shape[0],), None)))
        own = cut_part(update, parameter) if is_distributed(parameter) else update
        local_part(parameter).mul_(1 - lr * weight_decay).add_(own, alpha=-lr)


def orthogonal_parts(matrix: Tensor, fused: Fused) -> Tensor:
    """Each of the matrices that `matrix` [rows, columns] is made of, orthogonal and of root mean square ADAMW_RMS; rows
    in the order given. bfloat16."""
    order = None if fused.row_order is None else fused.row_order.to(matrix.device)
    if order is not None:
        matrix = torch.empty_like(matrix).index_copy_(0, order, matrix)
    parts = [orthogonalise(part).mul_(ADAMW_RMS * max(part.shape) ** 0.5) for part in matrix.split(fused.parts)]
    out = torch.cat(parts) if len(parts) > 1 else parts[0]
    return out if order is None else out.index_select(0, order)


def orthogonalise(matrix: Tensor) -> Tensor:
    """U V^T of the singular value decomposition U S V^T, nearly: singular values are in 0.7..1.2 instead of 1, but for
    those that are tiny beside the largest. [rows, columns] -> the same shape in bfloat16; zeros stay zeros."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.bfloat16()
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def hidden_matrices(model: nn.Module) -> dict[str, Linear]:
    """The linear layers whose weights Muon is for, by the weight's name: all but the vocabulary projection `head`.
    Embeddings are no linear layers."""
    return {
        f"{prefix}.weight": module
        for prefix, module in model.named_modules()
        if isinstance(module, Linear) and prefix != "head" and module.weight.requires_grad
    }


def build_muon(
    model: nn.Module, *, learning_rate: float, weight_decay: float, betas: tuple[float, float], eps: float
) -> Optimizer:
    """Muon for the trainable weights of `hidden_matrices`; AdamW with `betas` and `eps` for the rest: embeddings, head,
    norms, biases, gates. One learning rate and weight decay for both (vectors do not decay)."""
    matrices = hidden_matrices(model)
    parameters = dict(model.named_parameters())
    decayed, plain = ([parameters[n] for n in names if n not in matrices] for names in decay_groups(model))
    members: list[Optimizer] = []
    if matrices:
        fused: dict[Any, Fused] = {m.weight: Fused(m.parts, m.row_order) for m in matrices.values()}
        members.append(Muon([m.weight for m in matrices.values()], learning_rate, weight_decay, fused))
    if decayed or plain:
        members.append(
            adamw_over(decayed, plain, learning_rate=learning_rate, weight_decay=weight_decay, betas=betas, eps=eps)
        )
    return CombinedOptimizer(members)
