"""Questions side by side: prompts and their answers, and the passages of each.

In the layout of Wang et al. 2023, section 4.2, a prompt is padded on the left so that its last token ends a chunk, the
answer begins the next one and is padded on the right, and the neighbors serve from the prompt's last token on. Padding
on the left, which nothing may attend to, is no computation worth making: here every sequence begins at position 0, and
`chunk_ends_BL` says where its prompt ends. Both give each question the same logits, and so does generation, with a
short first chunk (tests/data/qa/test_qa_dataset.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Tokens = Sequence[int] | np.ndarray


class PaddedQuestions(NamedTuple):
    """tokens, targets int32 [B, N]; scored bool [B, N]: positions whose target is a token of the answer; prompt_ends
    int64 [B]: positions of the prompts' last tokens."""

    tokens: np.ndarray
    targets: np.ndarray
    scored: np.ndarray
    prompt_ends: np.ndarray


def pad_questions(
    prompts: Sequence[Tokens], answers: Sequence[Tokens], pad_id: int, multiple: int = 1
) -> PaddedQuestions:
    """B prompts and answers, each at least one token, padded on the right: N is what the longest needs without its last
    token, which is a target only, rounded up to a `multiple`."""
    most = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)) - 1
    width = -(-most // multiple) * multiple
    both = np.full((len(prompts), width + 1), pad_id, dtype=np.int32)
    scored = np.zeros((len(prompts), width), dtype=bool)
    ends = np.array([len(prompt) - 1 for prompt in prompts], dtype=np.int64)
    for row, (prompt, answer, end) in enumerate(zip(prompts, answers, ends.tolist(), strict=True)):
        both[row, : end + 1] = prompt
        both[row, end + 1 : end + 1 + len(answer)] = answer
        scored[row, end : end + len(answer)] = True
    return PaddedQuestions(both[:, :-1].copy(), both[:, 1:].copy(), scored, ends)


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
