"""Normalisation layers."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Elements up to which torch's rms_norm is faster than ours on a CPU.
_FEW = 2**16


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019; used by RETRO, S2 2.5)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.width = width
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width], any float dtype; the result has x's dtype. Computed in float32 at least."""
        exact = x if x.dtype == torch.float64 else x.float()
        weight = self.scale().to(exact.dtype)
        # A few rows, as decoding has them: torch's own has the smaller overhead.
        few = x.numel() <= _FEW and not torch.is_grad_enabled()
        if x.device.type == "cpu" and not few and not torch.compiler.is_compiling():
            return _EagerRMSNorm.apply(exact, weight, self.eps).to(x.dtype)
        return F.rms_norm(exact, (self.width,), weight, self.eps).to(x.dtype)

    def scale(self) -> Tensor:
        """The factors [width]."""
        return self.weight


class _EagerRMSNorm(torch.autograd.Function):
    """torch's rms_norm has no fused CPU kernel: this makes a third of its passes over memory, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        normed = x * inverse
        product = grad * normed
        with torch.autocast("cpu", enabled=False):
            mean = (product @ weight).div_(-x.shape[-1]).unsqueeze(-1)
        grad_x = (grad * weight).addcmul_(normed, mean).mul_(inverse)
        return grad_x, product.flatten(0, -2).sum(0), None


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension, with an optional bias."""

    def __init__(self, width: int, eps: float, bias: bool):
        super().__init__()
        self.width = width
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width]."""
        return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)


def build_norm(kind: Literal["rmsnorm", "layernorm"], width: int, eps: float, bias: bool) -> nn.Module:
    """The normalisation a configuration names; `bias` concerns layernorm only."""
    return RMSNorm(width, eps) if kind == "rmsnorm" else LayerNorm(width, eps, bias)
