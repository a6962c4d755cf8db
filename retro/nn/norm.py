"""Normalisation layers."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019; used by RETRO, S2 2.5)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.width = width
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width], any float dtype; the result has x's dtype (float32 under autocast on request of the caller)."""
        return F.rms_norm(x, (self.width,), self.weight, self.eps)


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
