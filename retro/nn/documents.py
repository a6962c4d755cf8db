"""Where documents lie in the sequences of a batch: what attention within documents needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """starts_BN int64 [B, N]: position of the first token of each position's document, constant over a document and
    never decreasing; lengths: of all documents of the batch in order (their sum is B N), None = not known on the host,
    and then attention is masked."""

    starts_BN: Tensor
    lengths: list[int] | None

    @cached_property
    def is_first(self) -> Tensor:
        """bool [B, N]: first token of its document."""
        return self.starts_BN == torch.arange(self.starts_BN.shape[1], device=self.starts_BN.device)

    @cached_property
    def positions(self) -> Tensor:
        """int64 [B, N]: positions counted from the begin of each document."""
        return torch.arange(self.starts_BN.shape[1], device=self.starts_BN.device) - self.starts_BN

    @cached_property
    def mask(self) -> Tensor:
        """bool [B, 1, N, N]: which position (third) may attend to which (fourth): not later, of the same document."""
        starts = self.starts_BN
        order = torch.arange(starts.shape[1], device=starts.device)
        # A key that is not later and not before the begin of the query's document is of that document.
        return ((order >= starts[:, :, None]) & (order <= order[:, None]))[:, None]


def documents_of(starts_BN: Tensor) -> Documents:
    """Documents of a batch. On a CPU their lengths are read, to attend to each by itself."""
    if starts_BN.device.type != "cpu" or torch.compiler.is_compiling():
        return Documents(starts_BN, None)
    batch, length = starts_BN.shape
    first = Documents(starts_BN, None).is_first
    first[:, 0] = True
    begins = first.flatten().nonzero().squeeze(1)
    ends = torch.cat((begins[1:], begins.new_tensor([batch * length])))
    return Documents(starts_BN, (ends - begins).tolist())
