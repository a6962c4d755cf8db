"""Feed-forward blocks: GELU (Hendrycks and Gimpel 2016) and SwiGLU (Shazeer 2020)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from retro.nn.linear import Linear


class FeedForward(nn.Module):
    """down(gelu(up x)) or down(silu(gate x) * up x); `up` holds gate and up side by side for swiglu, one product for
    both."""

    def __init__(self, width: int, hidden: int, kind: Literal["gelu", "gelu_tanh", "swiglu"], bias: bool):
        super().__init__()
        self.kind = kind
        self.up = Linear(width, 2 * hidden if kind == "swiglu" else hidden, bias=bias)
        self.down = Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width] -> [..., width]."""
        hidden = self.up(x)
        if self.kind != "swiglu":
            return self.down(F.gelu(hidden, approximate="tanh" if self.kind == "gelu_tanh" else "none"))
        gate, value = hidden.chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)
