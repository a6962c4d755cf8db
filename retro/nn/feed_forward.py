"""Feed-forward blocks: GELU (Hendrycks and Gimpel 2016) and SwiGLU (Shazeer 2020)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retro.nn.linear import Linear


class FeedForward(nn.Module):
    """down(gelu(up x)) or down(silu(gate x) * up x); `up` holds gate and up side by side for swiglu, one product for
    both.

    recompute: the activation is computed again in the backward pass instead of kept: the same bits, a quarter less
    memory per token, no product more.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        kind: Literal["gelu", "gelu_tanh", "swiglu"],
        bias: bool,
        recompute: bool = False,
    ):
        super().__init__()
        self.kind = kind
        self.recompute = recompute
        parts = (hidden, hidden) if kind == "swiglu" else (hidden,)
        self.up = Linear(width, sum(parts), bias=bias, parts=parts)
        self.down = Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width] -> [..., width]."""
        hidden = self.up(x)
        if self.recompute and torch.is_grad_enabled():
            # It stops as soon as the input of `down` is there again: that product is not made twice.
            out = checkpoint(self._finish, hidden, use_reentrant=False, preserve_rng_state=False)
            assert isinstance(out, Tensor)
            return out
        return self._finish(hidden)

    def _finish(self, hidden: Tensor) -> Tensor:
        if self.kind != "swiglu":
            return self.down(F.gelu(hidden, approximate="tanh" if self.kind == "gelu_tanh" else "none"))
        gate, value = hidden.chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)
