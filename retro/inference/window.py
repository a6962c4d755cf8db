"""The part of a text that the model sees while it scores a continuation, with the neighbors of its chunks.

The context is right-aligned: its last token ends a chunk, as the prompt in generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from retro.config.errors import ConfigError

if TYPE_CHECKING:
    from retro.retrieval.retriever import Retriever


class Window:
    """The tokens that the model sees, with the neighbors of each complete chunk.

    Chunks are counted from the window's begin: the first has `first` tokens (1..M), the others M. The oldest chunks are
    dropped whole, so that the window never exceeds `limit` tokens and chunk borders stay where they are.
    """

    def __init__(self, tokens: Sequence[int], chunk_length: int, limit: int, first: int | None = None) -> None:
        """`tokens`: at least one; limit: at least M + 1; first: tokens of the first chunk, 1..M, None = the last token
        ends a chunk."""
        if len(tokens) < 1:
            raise ValueError("tokens: expected at least one token of prompt, found none")
        if limit <= chunk_length:
            raise ConfigError(f"sequence_length: expected more than one chunk of {chunk_length} tokens, found {limit}")
        self.chunk_length, self.limit = chunk_length, limit
        self.tokens = list(tokens)
        self.first = (len(self.tokens) - 1) % chunk_length + 1 if first is None else first
        if not 1 <= self.first <= chunk_length:
            raise ValueError(f"first_chunk: expected 1..{chunk_length}, found {first}")
        self.dropped = 0
        #: Neighbor ids of each complete chunk in the window; None = not retrieved yet.
        self.neighbors: list[np.ndarray | None] = [None] * self._complete()

    def _complete(self) -> int:
        length = len(self.tokens)
        return 0 if length < self.first else 1 + (length - self.first) // self.chunk_length

    def append(self, token: int) -> None:
        """Add a token, dropping leading chunks if there is no room for it."""
        while len(self.tokens) >= self.limit:
            del self.tokens[: self.first]
            del self.neighbors[0]
            self.dropped += self.first
            self.first = self.chunk_length
        self.tokens.append(token)
        if self._complete() > len(self.neighbors):
            self.neighbors.append(None)

    def fit(self) -> None:
        """Drop leading chunks of a long prompt, so that the window is within the limit."""
        while len(self.tokens) > self.limit:
            del self.tokens[: self.first]
            del self.neighbors[0]
            self.dropped += self.first
            self.first = self.chunk_length

    def span(self, chunk: int) -> tuple[int, int]:
        """First token and the one behind the last of a chunk, counted in the window."""
        stop = self.first + chunk * self.chunk_length
        return max(0, stop - self.chunk_length), stop


class WindowRetriever:
    """Retrieves for the chunks of a window, and gives the model its neighbor tokens."""

    def __init__(self, retriever: Retriever, num_neighbors: int, pad_id: int) -> None:
        self.retriever, self.num_neighbors, self.pad_id = retriever, num_neighbors, pad_id

    def retrieve(self, window: Window) -> None:
        """Retrieve for every complete chunk that has not been yet."""
        missing = [i for i, ids in enumerate(window.neighbors) if ids is None]
        if not missing:
            return
        spans = [window.span(i) for i in missing]
        rows = [np.array(window.tokens[start:stop], dtype=np.int64) for start, stop in spans]
        ids, _ = self.retriever.retrieve(rows, self.num_neighbors)
        for row, chunk in enumerate(missing):
            window.neighbors[chunk] = ids[row]

    def neighbor_tokens(self, window: Window, device: torch.device) -> tuple[Tensor, Tensor]:
        """(neighbors int64 [1, L, K, R], mask bool) of the window's complete chunks."""
        ids = np.stack([row for row in window.neighbors if row is not None])[None]
        tokens, mask = self.retriever.database.gather_neighbors(ids, self.pad_id)
        return torch.from_numpy(tokens).to(device, torch.int64), torch.from_numpy(mask).to(device)
