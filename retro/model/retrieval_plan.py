"""Which neighbor tokens are worth computing: everything data-dependent about retrieval is decided here, before the
model runs.

Dropped: neighbor rows of chunks that serve no position, chunks without any real neighbor token, neighbors without
any, and columns beyond the longest real neighbor. What is left has at least one real token in every row and every
neighbor, so no softmax in the model can run over nothing, and a missing neighbor contributes exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retro.nn.chunked_cross_attention import count_complete_chunks


@dataclass(frozen=True)
class RetrievalPlan:
    """The neighbors to encode. `rows` = chunks of the batch with at least one neighbor, in order of b * num_chunks +
    u."""

    #: Chunks per sequence that are looked at (a prefix of the given rows).
    num_chunks: int
    #: Neighbors per chunk, K.
    num_neighbors: int
    first_chunk_length: int
    #: int64 [rows], indices into B * num_chunks; None = all of them.
    chunk_rows: Tensor | None
    #: int64 [A], indices into rows * K; None = all of them.
    neighbor_slots: Tensor | None
    #: int64 [A, R].
    tokens: Tensor
    #: bool [A, R]; None = all tokens are real.
    token_mask: Tensor | None
    #: bool [rows, K * R]; None = all tokens of all neighbors are real.
    key_mask: Tensor | None
    #: bool [rows, M], False before a short first chunk; None = all chunks are full.
    chunk_mask: Tensor | None


@torch.compiler.disable
@torch.no_grad()
def plan_retrieval(
    neighbors_BLKR: Tensor,
    neighbor_mask_BLKR: Tensor | None,
    *,
    length: int,
    chunk_length: int,
    first_chunk_length: int,
) -> RetrievalPlan | None:
    """Plan for neighbors int64 [B, L, K, R] with mask bool [B, L, K, R] (None = all real) of sequences of `length`
    tokens.

    None when there is nothing to retrieve. The contents of masked tokens have no influence on the plan or the model.
    """
    num_chunks = min(neighbors_BLKR.shape[1], count_complete_chunks(length, chunk_length, first_chunk_length))
    num_neighbors, retrieved = neighbors_BLKR.shape[2:]
    if num_chunks == 0 or num_neighbors == 0 or retrieved == 0 or neighbors_BLKR.shape[0] == 0:
        return None
    neighbors = neighbors_BLKR[:, :num_chunks]
    chunk_rows = neighbor_slots = token_mask = key_mask = None
    if neighbor_mask_BLKR is not None and not bool(neighbor_mask_BLKR[:, :num_chunks].all()):
        mask = neighbor_mask_BLKR[:, :num_chunks]
        used_chunks = mask.any(dim=(0, 2, 3)).nonzero()
        if used_chunks.numel() == 0:
            return None
        num_chunks = int(used_chunks[-1]) + 1
        longest = int(mask.any(dim=(0, 1, 2)).nonzero()[-1]) + 1
        mask, neighbors = mask[:, :num_chunks, :, :longest], neighbors[:, :num_chunks, :, :longest]
        mask, neighbors = mask.flatten(0, 1), neighbors.flatten(0, 1)
        chunk_active = mask.any(dim=(1, 2))
        if not bool(chunk_active.all()):
            chunk_rows = chunk_active.nonzero().squeeze(1)
            mask, neighbors = mask.index_select(0, chunk_rows), neighbors.index_select(0, chunk_rows)
        key_mask = mask.flatten(1, 2)
        mask, neighbors = mask.flatten(0, 1), neighbors.flatten(0, 1)
        neighbor_active = mask.any(dim=1)
        if not bool(neighbor_active.all()):
            neighbor_slots = neighbor_active.nonzero().squeeze(1)
            mask, neighbors = mask.index_select(0, neighbor_slots), neighbors.index_select(0, neighbor_slots)
        if bool(mask.all()):
            token_mask = None
            key_mask = key_mask if neighbor_slots is not None else None
        else:
            token_mask = mask
            # Masked tokens may hold anything, ids outside the vocabulary included.
            neighbors = neighbors.masked_fill(~mask, 0)
    else:
        neighbors = neighbors.flatten(0, 2)
    return RetrievalPlan(
        num_chunks=num_chunks,
        num_neighbors=num_neighbors,
        first_chunk_length=first_chunk_length,
        chunk_rows=chunk_rows,
        neighbor_slots=neighbor_slots,
        tokens=neighbors.contiguous(),
        token_mask=token_mask,
        key_mask=key_mask,
        chunk_mask=_chunk_mask(
            neighbors_BLKR.shape[0], num_chunks, chunk_rows, chunk_length, first_chunk_length, neighbors.device
        ),
    )


def _chunk_mask(
    batch: int,
    num_chunks: int,
    chunk_rows: Tensor | None,
    chunk_length: int,
    first_chunk_length: int,
    device: torch.device,
) -> Tensor | None:
    if first_chunk_length == chunk_length:
        return None
    rows = torch.arange(batch * num_chunks, device=device) if chunk_rows is None else chunk_rows
    real = torch.arange(chunk_length, device=device) >= chunk_length - first_chunk_length
    return (rows % num_chunks != 0)[:, None] | real[None, :]
