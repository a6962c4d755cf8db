"""Questions side by side: prompts right-aligned, answers after them, the passages of each.

Layout (Wang et al. 2023, section 4.2): every prompt is padded on the left so that its last token ends a chunk, the
answer begins the next one and is padded on the right, and the neighbors serve from the prompt's last token on. The
padding is a document of its own (docs/concepts.md, Packing): nothing attends to it, so a question means the same in
every batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Tokens = Sequence[int] | np.ndarray


class PaddedPrompts(NamedTuple):
    """tokens int32 [B, N]; document_starts int32 [B, N]: position of the first token of each position's document;
    prompt_length: P, a multiple of M, the answers begin there."""

    tokens: np.ndarray
    document_starts: np.ndarray
    prompt_length: int


def pad_prompts(
    prompts: Sequence[Tokens], chunk_length: int, pad_id: int, answers: Sequence[Tokens] = ()
) -> PaddedPrompts:
    """Prompts (at least one token each) of B questions in the fewest whole chunks, with `answers` (none, or one of
    each) in as many chunks more as the longest needs."""
    lengths = [len(prompt) for prompt in prompts]
    most = _whole_chunks(max(lengths), chunk_length)
    width = most + (_whole_chunks(max(map(len, answers)), chunk_length) if answers else 0)
    tokens = np.full((len(prompts), width), pad_id, dtype=np.int32)
    starts = np.zeros((len(prompts), width), dtype=np.int32)
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        tokens[row, most - length : most] = prompt
        starts[row, most - length :] = most - length
    for row, answer in enumerate(answers):
        tokens[row, most : most + len(answer)] = answer
    return PaddedPrompts(tokens, starts, most)


def pad_neighbors(neighbors: Sequence[Sequence[Tokens]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """The passages of B questions -> tokens int32 [B, 1, K, R] and mask bool of that shape, K and R as the largest
    needs, 1 where there is none."""
    most = max([1, *(len(passages) for passages in neighbors)])
    longest = max([1, *(len(passage) for passages in neighbors for passage in passages)])
    tokens = np.full((len(neighbors), 1, most, longest), pad_id, dtype=np.int32)
    mask = np.zeros(tokens.shape, dtype=bool)
    for row, passages in enumerate(neighbors):
        for place, passage in enumerate(passages):
            tokens[row, 0, place, : len(passage)] = passage
            mask[row, 0, place, : len(passage)] = True
    return tokens, mask


def _whole_chunks(length: int, chunk_length: int) -> int:
    return -(-length // chunk_length) * chunk_length
