"""Several optimizers over disjoint parameters as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer


class CombinedOptimizer(Optimizer):
    """Has the parameter groups and the state of `members`, in their order, and steps them one after the other.

    Schedules and checkpoints treat it as any optimizer; the members must not be used by themselves any more.
    """

    def __init__(self, members: Sequence[Optimizer]) -> None:
        self._members = list(members)
        self._counts = [len(member.param_groups) for member in members]
        super().__init__([group for member in members for group in member.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step every member. closure: as torch.optim.Optimizer has it, evaluated once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for member in self._members:
            member.step()
        return loss

    def _share(self) -> None:
        """Make groups and state one thing, seen from here and from the members."""
        begin = 0
        for member, count in zip(self._members, self._counts, strict=True):
            member.param_groups = self.param_groups[begin : begin + count]
            member.state = self.state
            begin += count
