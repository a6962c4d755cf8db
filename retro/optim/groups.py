"""Which trainable parameters are updated alike."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


def decay_groups(model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the trainable parameters with and without weight decay, in the model's order; tied ones once.

    Decayed: everything with two dimensions or more, the embedding included: without decay its norm grows for the whole
    run, and a tied embedding is the output matrix. Not decayed: norm scales, biases and per-head scalars, for which 0
    is no neutral value.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [name for name, p in named if p.ndim >= 2], [name for name, p in named if p.ndim < 2]


def split_by_mesh(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """The parameters that lie alike, whole or sharded over one mesh of processes: torch updates the members of a
    parameter group in one operation, which takes no mixture. Order of first appearance; none is empty."""
    groups: dict[object, list[Tensor]] = {}
    for parameter in parameters:
        groups.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    return list(groups.values())
