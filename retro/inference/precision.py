"""How the model runs outside training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch


@contextlib.contextmanager
def inference(device: torch.device, precision: Literal["fp32", "bf16"]) -> Iterator[None]:
    """Without gradients, with matrix products in the given precision. Not to be held open across a yield."""
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield
