"""Where documents lie in the sequences of a batch: what attention within documents needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """Made by `documents_of`. Exactly one of lengths and mask is there."""

    #: bool [B, N]: first token of its document.
    is_first: Tensor
    #: int64 [B, N]: positions counted from the begin of each document.
    positions: Tensor
    #: Lengths of all documents of the batch in order; their sum is B N.
    lengths: list[int] | None
    #: bool [B, 1, N, N]: which position (third) may attend to which (fourth): not later, of the same document.
    mask: Tensor | None


def documents_of(starts_BN: Tensor) -> Documents:
    """starts_BN int64 [B, N]: position of the first token of each position's document, constant over a document and
    never decreasing. On a CPU the lengths are read, to attend to each document by itself; elsewhere, and in compiled
    programs, attention is masked."""
    order = torch.arange(starts_BN.shape[1], device=starts_BN.device)
    is_first, positions = starts_BN == order, order - starts_BN
    if starts_BN.device.type != "cpu" or torch.compiler.is_compiling():
        # A key that is not later and not before the begin of the query's document is of that document.
        mask = (order >= starts_BN[:, :, None]) & (order <= order[:, None])
        return Documents(is_first, positions, None, mask[:, None])
    batch, length = starts_BN.shape
    begin = is_first.clone()
    begin[:, 0] = True
    begins = begin.flatten().nonzero().squeeze(1)
    ends = torch.cat((begins[1:], begins.new_tensor([batch * length])))
    return Documents(is_first, positions, (ends - begins).tolist(), None)
