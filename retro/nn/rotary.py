"""Rotary position embedding (Su et al. 2021), in the half-rotation layout of GPT-NeoX.

Dimension j < w/2 of the rotated width w is paired with dimension j + w/2, both turned by position * base^(-2j/w). The
dot product of a rotated query and key depends on the difference of their positions only, so a position may be counted
from any origin as long as queries and keys share it. Dimensions from w on carry no position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RotaryTable:
    """cos and signed sin of a run of positions: float [T, 1, w], broadcast over heads."""

    cos: Tensor
    sin: Tensor

    def rows(self, start: int, stop: int) -> RotaryTable:
        """The table of positions start..stop-1 of this table."""
        return RotaryTable(self.cos[start:stop], self.sin[start:stop])


def rotary_table(length: int, width: int, base: float, device: torch.device, dtype: torch.dtype) -> RotaryTable:
    """Table of positions 0..length-1. Angles are computed in float32 (float64 for float64) and rounded to `dtype`
    last."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    frequencies = base ** (torch.arange(0, width, 2, device=device, dtype=exact) / -width)
    angles = torch.outer(torch.arange(length, device=device, dtype=exact), frequencies)
    cos, sin = angles.cos(), angles.sin()
    # rotate([a, b]) = [a cos - b sin, b cos + a sin] = x * [cos, cos] + roll(x) * [-sin, sin]
    return RotaryTable(
        torch.cat((cos, cos), dim=-1).unsqueeze(1).to(dtype), torch.cat((-sin, sin), dim=-1).unsqueeze(1).to(dtype)
    )


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Rotate the first w dimensions of every head. x: [..., T, heads, E] -> the same shape and dtype."""
    width = table.cos.shape[-1]
    if width < x.shape[-1]:
        rotated, rest = x.split((width, x.shape[-1] - width), dim=-1)
        return torch.cat((rotate(rotated, table), rest), dim=-1)
    cos, sin = table.cos.to(x.dtype), table.sin.to(x.dtype)
    return torch.addcmul(x * cos, x.roll(width // 2, dims=-1), sin)
