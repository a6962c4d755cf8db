"""Chunked cross-attention (CCA) and the arithmetic that cuts a sequence into chunks and query blocks.

Source: Borgeaud et al. 2022, section 2.4, appendix B.1.2 and listing 1, generalised to any length (docs/concepts.md).

With f = `first_chunk_length` (1..M) chunk 0 is the positions 0..f-1, and chunk u >= 1 the M positions from f + (u-1)
M. The neighbors of chunk u serve the M positions from the *last token of chunk u* on: query block u begins at f - 1 +
u M. A position p predicts token p + 1, so all tokens of chunk u + 1 are predicted with the neighbors of chunk u, and
none of chunk u's own tokens is.

Positions inside CCA are counted from the place where a full chunk u would begin: neighbor token i' has position i', the
i-th query of the block (i = 0..M-1) has position i + M - 1, so their distance is i - i' + M - 1 for every neighbor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro.nn.attention import AttentionShape, CrossAttention
from retro.nn.rotary import RotaryTable


def count_complete_chunks(length: int, chunk_length: int, first_chunk_length: int) -> int:
    """Chunks whose last token is within `length` tokens, = rows of neighbors that some position can use."""
    return 0 if length < first_chunk_length else 1 + (length - first_chunk_length) // chunk_length


def count_chunks(length: int, chunk_length: int, first_chunk_length: int) -> int:
    """Chunks that `length` tokens touch, the last one complete or not."""
    return 1 if length <= first_chunk_length else 1 - (first_chunk_length - length) // chunk_length


def cut_chunks(x: Tensor, num_chunks: int, chunk_length: int, first_chunk_length: int) -> Tensor:
    """The first `num_chunks` complete chunks: [B, N, D] -> [B * num_chunks, M, D].

    A short first chunk is right-aligned (its last token is at M - 1, as CCA counts positions), with zeros before it.
    """
    x = x[:, : first_chunk_length + (num_chunks - 1) * chunk_length]
    if first_chunk_length != chunk_length:
        x = F.pad(x, (0, 0, chunk_length - first_chunk_length, 0))
    return x.unflatten(1, (num_chunks, chunk_length)).flatten(0, 1)


def cut_query_blocks(x: Tensor, num_chunks: int, chunk_length: int, first_chunk_length: int) -> Tensor:
    """The positions served by the neighbors of each of `num_chunks` chunks: [B, N, D] -> [B * num_chunks, M, D].

    The last block may reach beyond N; it is filled with zeros, and `add_query_blocks` drops what it yields.
    """
    start, length = first_chunk_length - 1, num_chunks * chunk_length
    x = x[:, start : start + length]
    if x.shape[1] < length:
        x = F.pad(x, (0, 0, 0, length - x.shape[1]))
    return x.unflatten(1, (num_chunks, chunk_length)).flatten(0, 1)


def add_query_blocks(x: Tensor, blocks: Tensor, first_chunk_length: int) -> Tensor:
    """x [B, N, D] plus `blocks` [B * num_chunks, M, D] at the positions they were cut from; others keep their bits."""
    start = first_chunk_length - 1
    added = blocks.reshape(x.shape[0], -1, x.shape[2])[:, : x.shape[1] - start]
    before, served, after = x.split((start, added.shape[1], x.shape[1] - start - added.shape[1]), dim=1)
    return torch.cat((before, served + added, after), dim=1)


class ChunkedCrossAttention(nn.Module):
    """Pre-norm attention of query blocks to the encoded neighbors of the chunk before, without the residual.

    gate: the factor on what is added, learned from `gate_value` on or fixed to it.
    """

    def __init__(
        self,
        width: int,
        key_width: int,
        shape: AttentionShape,
        chunk_length: int,
        norm: nn.Module,
        gate_value: float = 1.0,
        learned_gate: bool = False,
    ):
        super().__init__()
        self.chunk_length = chunk_length
        self.gate_value = gate_value
        self.norm = norm
        self.attention = CrossAttention(width, key_width, shape)
        self.gate = nn.Parameter(torch.full((1,), gate_value)) if learned_gate else None

    @property
    def is_off(self) -> bool:
        """Whether the layer never adds anything."""
        return self.gate is None and self.gate_value == 0.0

    def project_neighbors(
        self, encoded: Tensor, num_neighbors: int, rotary: RotaryTable, neighbor_source: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rotated keys and values [rows, num_neighbors * R, Hkv, E] of encoded neighbors [A, R, D'].

        A = rows * num_neighbors in row-major order; or neighbor_source int64 [rows * num_neighbors] says which of the A
        stands in each place (any of them where none does: those places are masked). rotary: positions from 0 on, at
        least max(R, 2 M - 1) of them.
        """
        length = encoded.shape[1]
        keys, values = self.attention.project_keys(encoded, rotary.rows(0, length))
        if neighbor_source is not None:
            keys, values = keys.index_select(0, neighbor_source), values.index_select(0, neighbor_source)
        rows = keys.shape[0] // num_neighbors
        return (
            keys.reshape(rows, num_neighbors * length, *keys.shape[2:]),
            values.reshape(rows, num_neighbors * length, *values.shape[2:]),
        )

    def attend(
        self, blocks: Tensor, keys: Tensor, values: Tensor, rotary: RotaryTable, key_mask: Tensor | None = None
    ) -> Tensor:
        """Gated output [rows, T, D] for queries of the residual stream `blocks` [rows, T, D] at the positions of
        `rotary`; keys, values: of `project_neighbors`; key_mask bool [rows, num_neighbors * R], True = a real token of
        a present neighbor, None = all are."""
        queries = self.attention.project_queries(self.norm(blocks), rotary)
        added = self.attention(queries, keys, values, key_mask)
        if self.gate is not None:
            return added * self.gate.to(added.dtype)
        return added if self.gate_value == 1.0 else added * self.gate_value
