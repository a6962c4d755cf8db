"""Rotary position embedding (Su et al. 2021), in the half-rotation layout of GPT-NeoX.

Dimension j < w/2 of the rotated width w is paired with dimension j + w/2, both turned by position * base^(-2j/w). The
dot product of a rotated query and key depends on the difference of their positions only, so a position may be counted
from any origin as long as queries and keys share it. Dimensions from w on carry no position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from retro.config.model_parts import RotaryScaling


@dataclass(frozen=True)
class RotaryTable:
    """cos and signed sin of a run of positions: float [T, 1, w], broadcast over heads."""

    cos: Tensor
    sin: Tensor

    def rows(self, start: int, stop: int) -> RotaryTable:
        """The table of positions start..stop-1 of this table."""
        return RotaryTable(self.cos[start:stop], self.sin[start:stop])


def rotary_table(
    length: int,
    width: int,
    base: float,
    device: torch.device,
    dtype: torch.dtype,
    scaling: RotaryScaling | None = None,
) -> RotaryTable:
    """Table of positions 0..length-1. Angles are computed in float32 (float64 for float64) and rounded to `dtype`
    last."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    frequencies = base ** (torch.arange(0, width, 2, device=device, dtype=exact) / -width)
    if scaling is not None:
        frequencies = scale_frequencies(frequencies, scaling)
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


def scale_frequencies(frequencies: Tensor, scaling: RotaryScaling) -> Tensor:
    """Radians per position [w / 2] after retro.config.model_parts.RotaryScaling."""
    slow = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slow
    # Share of the unscaled frequency: 0 at the longest wavelengths, 1 at the shortest.
    turns = frequencies * (scaling.original_positions / (2 * math.pi))
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return torch.lerp(slow, frequencies, share)
