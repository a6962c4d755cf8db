"""Activation checkpointing: parts of a model whose activations are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def call_part(part: str, checkpointed: frozenset[str], function: Callable[..., Tensor], *arguments: object) -> Tensor:
    """The function's value; its activations are not kept if `part` is among `checkpointed`.

    The function must not call a module that FSDP gathers: it would be gathered once more to compute again.
    """
    if part in checkpointed and torch.is_grad_enabled():
        value = checkpoint(function, *arguments, use_reentrant=False)
        assert isinstance(value, Tensor)
        return value
    return function(*arguments)
