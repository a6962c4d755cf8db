"""Tokens of neighbors as the model takes them: retrieved ones by their chunk ids, given ones as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from retro.data.chunk_store import ChunkStore

#: Neighbors of one chunk: ids of database chunks int64 [K] (-1 = none), or the token ids of each.
Neighbors = np.ndarray | tuple[tuple[int, ...], ...]


def check_neighbors(neighbors: Sequence[Sequence[int]], most: int, longest: int, vocabulary: int) -> None:
    """Raise ValueError if there are more than `most`, or one is empty, longer than `longest` tokens, or holds ids that
    are not 0..vocabulary-1."""
    if len(neighbors) > most:
        raise ValueError(f"neighbors: expected at most {most}, found {len(neighbors)}")
    for number, tokens in enumerate(neighbors):
        if not 1 <= len(tokens) <= longest:
            raise ValueError(f"neighbors[{number}]: expected 1..{longest} tokens, found {len(tokens)}")
        if not 0 <= min(tokens) <= max(tokens) < vocabulary:
            raise ValueError(f"neighbors[{number}]: expected token ids 0..{vocabulary - 1}, found {list(tokens)[:8]}")


def lay_out_neighbors(
    rows: Sequence[Neighbors | None], num_neighbors: int, database: ChunkStore | None, pad_id: int
) -> tuple[Tensor, Tensor]:
    """(tokens int64 [rows, K, R], mask bool, True = a real token) on the CPU; R is that of the longest neighbor.

    rows: of each chunk, None = it has none; num_neighbors K; database: what ids are in.
    """
    by_id = [row for row, neighbors in enumerate(rows) if isinstance(neighbors, np.ndarray)]
    longest = max((len(tokens) for found in rows if isinstance(found, tuple) for tokens in found), default=1)
    gathered = None
    if by_id:
        assert database is not None
        ids = np.full((len(by_id), num_neighbors), -1, dtype=np.int64)
        for place, row in enumerate(by_id):
            found = rows[row]
            assert isinstance(found, np.ndarray)
            ids[place, : len(found)] = found
        gathered = database.gather_neighbors(ids, pad_id)
        longest = max(longest, gathered[0].shape[2])
    tokens = np.full((len(rows), num_neighbors, longest), pad_id, dtype=np.int64)
    mask = np.zeros(tokens.shape, dtype=bool)
    if gathered is not None:
        tokens[by_id, :, : gathered[0].shape[2]], mask[by_id, :, : gathered[1].shape[2]] = gathered
    for row, given in enumerate(rows):
        if isinstance(given, tuple):
            for place, content in enumerate(given):
                tokens[row, place, : len(content)] = content
                mask[row, place, : len(content)] = True
    return torch.from_numpy(tokens), torch.from_numpy(mask)
