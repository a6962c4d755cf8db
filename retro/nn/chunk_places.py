"""Chunks and query blocks that lie anywhere in a sequence: in packed documents, or retrieved for every s tokens.

The regular grid of chunks needs none of this (retro.nn.chunked_cross_attention cuts it by reshaping).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ChunkPlaces:
    """Where the retrieving chunks and the positions that they serve are, as indices into the B N positions of a batch.

    rows: chunks of the batch. Each serves at most M positions, from its own last one on.
    """

    #: int64 [rows, M], right-aligned (a chunk's last token is at M - 1); any index where the mask is False.
    chunks: Tensor
    #: bool [rows, M], True = a token of the chunk.
    chunk_mask: Tensor
    #: int64 [rows, M]; any index where the mask is False.
    blocks: Tensor
    #: bool [rows, M], True = a position that the row's neighbors serve.
    block_mask: Tensor
    #: int64 [P], the places in rows * M where block_mask is True; None = not known on the host.
    served: Tensor | None

    def select(self, rows: Tensor) -> ChunkPlaces:
        """Only these rows, int64 [A]; knows `served`."""
        mask = self.block_mask.index_select(0, rows)
        return ChunkPlaces(
            self.chunks.index_select(0, rows),
            self.chunk_mask.index_select(0, rows),
            self.blocks.index_select(0, rows),
            mask,
            mask.flatten().nonzero().squeeze(1),
        )

    def cut_chunks(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [rows, M, D]."""
        return _take(x, self.chunks)

    def cut_query_blocks(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [rows, M, D]."""
        return _take(x, self.blocks)

    def add_query_blocks(self, x: Tensor, added: Tensor) -> Tensor:
        """x [B, N, D] plus `added` [rows, M, D] at the positions that are served; others keep their bits."""
        places, values = self.blocks.flatten(), added.flatten(0, 1)
        if self.served is None:
            values = values.masked_fill(~self.block_mask.flatten()[:, None], 0.0)
        else:
            places, values = places.index_select(0, self.served), values.index_select(0, self.served)
        return x.flatten(0, 1).index_add(0, places, values.to(x.dtype)).view(x.shape)


def _take(x: Tensor, places: Tensor) -> Tensor:
    return x.flatten(0, 1).index_select(0, places.flatten()).view(*places.shape, x.shape[2])


def place_chunks(chunk_ends_BL: Tensor, starts_BN: Tensor | None, length: int, chunk_length: int) -> ChunkPlaces:
    """Places of B * L rows; `served` is not filled in.

    chunk_ends_BL int64 [B, L]: position of each chunk's last token, ascending within a row, -1 = an unused row (its
    masks are all False); starts_BN int64 [B, N]: begin of each position's document, None = one document per sequence.
    A chunk is the up to M tokens of its document that end there; its block goes on until M positions, the next chunk's
    end, or the end of the document.
    """
    batch = chunk_ends_BL.shape[0]
    device = chunk_ends_BL.device
    used = chunk_ends_BL >= 0
    ends = chunk_ends_BL.clamp(min=0)
    # The end of the next used chunk: the least of those to the right.
    later = torch.where(used, chunk_ends_BL, length)
    smallest = later.flip(1).cummin(dim=1).values.flip(1)
    following = torch.cat((smallest[:, 1:], smallest.new_full((batch, 1), length)), dim=1)
    steps = torch.arange(chunk_length, device=device)
    blocks = ends[:, :, None] + steps
    chunks = blocks - (chunk_length - 1)
    block_mask = used[:, :, None] & (blocks < following[:, :, None])
    begin: Tensor = ends.new_zeros(ends.shape)
    if starts_BN is not None:
        begin = starts_BN.gather(1, ends)
        inside = blocks.clamp(max=length - 1)
        same = starts_BN.gather(1, inside.flatten(1)).view(blocks.shape) == begin[:, :, None]
        block_mask = block_mask & same
    chunk_mask = used[:, :, None] & (chunks >= begin[:, :, None])
    offset = (torch.arange(batch, device=device) * length)[:, None, None]
    return ChunkPlaces(
        (chunks.clamp(min=0) + offset).flatten(0, 1),
        chunk_mask.flatten(0, 1),
        (blocks.clamp(max=length - 1) + offset).flatten(0, 1),
        block_mask.flatten(0, 1),
        None,
    )
