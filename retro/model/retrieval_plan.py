"""Which neighbor tokens are worth computing: everything data-dependent about retrieval is decided here, before the
model runs.

Dropped: neighbor rows of chunks that serve no position, chunks without any real neighbor token, neighbors without
any, and columns beyond the longest real neighbor; of neighbors that are equal, where the encoder does not see the
retrieving chunk, all but one. What is left has at least one real token in every row and every neighbor, so no softmax
in the model can run over nothing, and a missing neighbor contributes exactly 0.

With `static`, shapes depend on the shapes of the input alone, as compiled programs want it: nothing is dropped, and
what a row without neighbors adds is multiplied by 0.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from retro.nn.chunk_places import ChunkPlaces, place_chunks
from retro.nn.chunked_cross_attention import (
    add_query_blocks,
    count_complete_chunks,
    cut_chunks,
    cut_query_blocks,
)


@dataclass(frozen=True)
class RetrievalPlan:
    """The neighbors to encode. `rows` = chunks of the batch with at least one neighbor, in order of b * num_chunks +
    u."""

    #: Chunks per sequence that are looked at (a prefix of the given rows).
    num_chunks: int
    #: Neighbors per chunk, K.
    num_neighbors: int
    #: M.
    chunk_length: int
    first_chunk_length: int
    #: int64 [rows], indices into B * num_chunks; None = all of them, or told by `places`.
    chunk_rows: Tensor | None
    #: int64 [A], indices into rows * K, of the neighbors to encode; None = all of them.
    neighbor_slots: Tensor | None
    #: int64 [rows * K], which of the A encoded neighbors stands in each place; None = A = rows * K, in order.
    neighbor_source: Tensor | None
    #: int64 [A, R].
    tokens: Tensor
    #: bool [A, R]; None = all tokens are real.
    token_mask: Tensor | None
    #: bool [rows, K * R]; None = all tokens of all neighbors are real.
    key_mask: Tensor | None
    #: bool [rows, M], False before a short chunk; None = all chunks are full.
    chunk_mask: Tensor | None
    #: Where the chunks are; None = on the grid of `first_chunk_length`.
    places: ChunkPlaces | None = None
    #: bool [rows], False = the row has no neighbor after all; None = all have (static plans only).
    row_is_real: Tensor | None = None

    @property
    def longest(self) -> int:
        """R, columns of `tokens`."""
        return self.tokens.shape[1]

    def cut_chunks(self, x: Tensor) -> Tensor:
        """Activations of the retrieving chunks: [B, N, D] -> [rows, M, D]."""
        if self.places is not None:
            return self.places.cut_chunks(x)
        return self._select(cut_chunks(x, self.num_chunks, self.chunk_length, self.first_chunk_length))

    def cut_query_blocks(self, x: Tensor) -> Tensor:
        """The positions that each row serves: [B, N, D] -> [rows, M, D]."""
        if self.places is not None:
            return self.places.cut_query_blocks(x)
        return self._select(cut_query_blocks(x, self.num_chunks, self.chunk_length, self.first_chunk_length))

    def add_query_blocks(self, x: Tensor, added: Tensor) -> Tensor:
        """x [B, N, D] plus `added` [rows, M, D] at the positions of `cut_query_blocks`; others keep their bits."""
        if self.row_is_real is not None:
            added = added.masked_fill(~self.row_is_real[:, None, None], 0.0)
        if self.places is not None:
            return self.places.add_query_blocks(x, added)
        if self.chunk_rows is not None:
            whole = added.new_zeros((x.shape[0] * self.num_chunks, *added.shape[1:]))
            added = whole.index_copy(0, self.chunk_rows, added)
        return add_query_blocks(x, added, self.first_chunk_length)

    def _select(self, chunks: Tensor) -> Tensor:
        return chunks if self.chunk_rows is None else chunks.index_select(0, self.chunk_rows)


@torch.compiler.disable
@torch.no_grad()
def plan_retrieval(
    neighbors_BLKR: Tensor,
    neighbor_mask_BLKR: Tensor | None,
    *,
    length: int,
    chunk_length: int,
    first_chunk_length: int,
    chunk_ends_BL: Tensor | None = None,
    document_starts_BN: Tensor | None = None,
    merge_equal: bool = False,
) -> RetrievalPlan | None:
    """Plan for neighbors int64 [B, L, K, R] with mask bool [B, L, K, R] (None = all real) of sequences of `length`
    tokens.

    chunk_ends_BL, document_starts_BN: see RetroModel.forward; merge_equal: encode equal neighbors once. None when there
    is nothing to retrieve. The contents of masked tokens have no influence on the plan or the model.
    """
    found = _place(
        neighbors_BLKR, neighbor_mask_BLKR, length, chunk_length, first_chunk_length, chunk_ends_BL, document_starts_BN
    )
    if found is None:
        return None
    neighbors, mask, places = found
    batch, num_chunks, num_neighbors = neighbors.shape[:3]
    chunk_rows = neighbor_slots = neighbor_source = token_mask = key_mask = None
    if mask is not None and not bool(mask.all()):
        used_chunks = mask.any(dim=(0, 2, 3)).nonzero()
        if used_chunks.numel() == 0:
            return None
        if places is None:
            num_chunks = int(used_chunks[-1]) + 1
        longest = int(mask.any(dim=(0, 1, 2)).nonzero()[-1]) + 1
        mask, neighbors = mask[:, :num_chunks, :, :longest], neighbors[:, :num_chunks, :, :longest]
        mask, neighbors = mask.flatten(0, 1), neighbors.flatten(0, 1)
        chunk_active = mask.any(dim=(1, 2))
        if places is not None or not bool(chunk_active.all()):
            chunk_rows = chunk_active.nonzero().squeeze(1)
            mask, neighbors = mask.index_select(0, chunk_rows), neighbors.index_select(0, chunk_rows)
        key_mask = mask.flatten(1, 2)
        mask, neighbors = mask.flatten(0, 1), neighbors.flatten(0, 1)
        neighbor_active = mask.any(dim=1)
        if not bool(neighbor_active.all()):
            neighbor_slots = neighbor_active.nonzero().squeeze(1)
            neighbor_source = (neighbor_active.cumsum(0) - 1).clamp(min=0)
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
    if places is not None:
        rows = torch.arange(batch * num_chunks, device=neighbors.device) if chunk_rows is None else chunk_rows
        places, chunk_rows = places.select(rows), None
        chunk_mask = None if bool(places.chunk_mask.all()) else places.chunk_mask
    else:
        chunk_mask = _grid_mask(batch * num_chunks, num_chunks, chunk_rows, chunk_length, first_chunk_length, neighbors)
    plan = RetrievalPlan(
        num_chunks=num_chunks,
        num_neighbors=num_neighbors,
        chunk_length=chunk_length,
        first_chunk_length=first_chunk_length,
        chunk_rows=chunk_rows,
        neighbor_slots=neighbor_slots,
        neighbor_source=neighbor_source,
        tokens=neighbors.contiguous(),
        token_mask=token_mask,
        key_mask=key_mask,
        chunk_mask=chunk_mask,
        places=places,
    )
    return _merge_equal(plan) if merge_equal else plan


def plan_static_retrieval(
    neighbors_BLKR: Tensor,
    neighbor_mask_BLKR: Tensor | None,
    *,
    length: int,
    chunk_length: int,
    first_chunk_length: int,
    chunk_ends_BL: Tensor | None = None,
    document_starts_BN: Tensor | None = None,
) -> RetrievalPlan | None:
    """As `plan_retrieval`, with shapes that depend on the shapes of the arguments only, and without reading a value on
    the host."""
    found = _place(
        neighbors_BLKR, neighbor_mask_BLKR, length, chunk_length, first_chunk_length, chunk_ends_BL, document_starts_BN
    )
    if found is None:
        return None
    neighbors, mask, places = found
    batch, num_chunks, num_neighbors = neighbors.shape[:3]
    token_mask = key_mask = row_is_real = None
    neighbors = neighbors.flatten(0, 2)
    if mask is not None:
        row_is_real = mask.any(dim=(2, 3)).flatten()
        token_mask = mask.flatten(0, 2)
        neighbors = neighbors.masked_fill(~token_mask, 0)
        # A softmax over nothing is not a number: rows and neighbors without a real token look at their first one. What
        # comes of it is masked again further on.
        empty = ~token_mask.any(dim=1)
        token_mask = torch.cat((token_mask[:, :1] | empty[:, None], token_mask[:, 1:]), dim=1)
        key_mask = mask.flatten(0, 1).flatten(1, 2)
        key_mask = torch.cat((key_mask[:, :1] | ~row_is_real[:, None], key_mask[:, 1:]), dim=1)
    if places is not None:
        # The last token of an unused row's chunk stands for the whole.
        chunk_mask: Tensor | None = torch.cat(
            (places.chunk_mask[:, :-1], torch.ones_like(places.chunk_mask[:, -1:])), dim=1
        )
    else:
        chunk_mask = _grid_mask(batch * num_chunks, num_chunks, None, chunk_length, first_chunk_length, neighbors)
    return RetrievalPlan(
        num_chunks=num_chunks,
        num_neighbors=num_neighbors,
        chunk_length=chunk_length,
        first_chunk_length=first_chunk_length,
        chunk_rows=None,
        neighbor_slots=None,
        neighbor_source=None,
        tokens=neighbors,
        token_mask=token_mask,
        key_mask=key_mask,
        chunk_mask=chunk_mask,
        places=places,
        row_is_real=row_is_real,
    )


def _place(
    neighbors: Tensor,
    mask: Tensor | None,
    length: int,
    chunk_length: int,
    first_chunk_length: int,
    chunk_ends_BL: Tensor | None,
    document_starts_BN: Tensor | None,
) -> tuple[Tensor, Tensor | None, ChunkPlaces | None] | None:
    """(neighbors [B, L', K, R], their mask, places): what lies within the sequences; None if that is nothing."""
    if neighbors.numel() == 0:
        return None
    if chunk_ends_BL is None:
        num_chunks = min(neighbors.shape[1], count_complete_chunks(length, chunk_length, first_chunk_length))
        if num_chunks == 0:
            return None
        neighbors, mask = neighbors[:, :num_chunks], None if mask is None else mask[:, :num_chunks]
        if document_starts_BN is None:
            return neighbors, mask, None
        ends = first_chunk_length - 1 + chunk_length * torch.arange(num_chunks, device=neighbors.device)
        chunk_ends_BL = ends.expand(neighbors.shape[0], num_chunks)
    places = place_chunks(chunk_ends_BL, document_starts_BN, length, chunk_length)
    used = (chunk_ends_BL >= 0)[:, :, None, None]
    return neighbors, used.expand(neighbors.shape) if mask is None else mask & used, places


def _grid_mask(
    num_rows: int, num_chunks: int, chunk_rows: Tensor | None, chunk_length: int, first_chunk_length: int, like: Tensor
) -> Tensor | None:
    if first_chunk_length == chunk_length:
        return None
    rows = torch.arange(num_rows, device=like.device) if chunk_rows is None else chunk_rows
    real = torch.arange(chunk_length, device=like.device) >= chunk_length - first_chunk_length
    return (rows % num_chunks != 0)[:, None] | real[None, :]


def _merge_equal(plan: RetrievalPlan) -> RetrievalPlan:
    """The plan with each distinct neighbor once. Only for an encoder that does not see the retrieving chunk."""
    content = plan.tokens if plan.token_mask is None else plan.tokens.masked_fill(~plan.token_mask, -1)
    distinct, number = torch.unique(content, dim=0, return_inverse=True)
    if distinct.shape[0] == content.shape[0]:
        return plan
    return dataclasses.replace(
        plan,
        tokens=distinct.clamp(min=0),
        token_mask=None if plan.token_mask is None else distinct >= 0,
        neighbor_slots=None,
        neighbor_source=number if plan.neighbor_source is None else number.index_select(0, plan.neighbor_source),
    )
