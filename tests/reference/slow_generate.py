"""Generation without any cache: the whole window through the model for every token.

Retrieval follows the rule of retro.inference.engine, written down plainly: the prompt's chunks end at its last token
and every M tokens before it; later ones where `wants` says; each retrieves with the up to M tokens of the window that
end there. When the window is full, the newest three quarters of it are kept, and at least M tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch


def slow_greedy(
    lm: Any, prompt: Sequence[int], count: int, wants: Callable[[int, float], bool] | None
) -> tuple[list[int], list[float], list[int]]:
    """(new tokens, their log-probabilities, positions of the last tokens of the retrieving chunks).

    lm: a RetroLM; wants: whether to retrieve, asked with the number of tokens since the last retrieval and the
    probability of the last token; None = never. The end of the text does not stop it.
    """
    chunk, window = lm.model.config.chunk_length, lm.window_length
    tokens, dropped = list(prompt), max(0, len(prompt) - (window - 1))
    found: list[tuple[int, np.ndarray]] = []

    def retrieve(end: int) -> None:
        row = np.array(tokens[max(dropped, end + 1 - chunk) : end + 1])
        found.append((end, lm.retriever.retrieve([row], lm.num_neighbors)[0][0]))

    if wants is not None:
        for end in sorted(range(len(tokens) - 1, dropped - 1, -chunk)):
            retrieve(end)
    logprobs: list[float] = []
    for _ in range(count):
        if len(tokens) - dropped > window:
            dropped = len(tokens) - max(chunk, window * 3 // 4)
        seen = [(end, ids) for end, ids in found if end >= dropped]
        arguments: dict[str, Any] = {}
        if seen:
            gathered, mask = lm.database.gather_neighbors(np.stack([ids for _, ids in seen])[None], lm.tokenizer.pad_id)
            arguments = {
                "neighbors_BLKR": torch.from_numpy(gathered).long(),
                "neighbor_mask_BLKR": torch.from_numpy(mask),
                "chunk_ends_BL": torch.tensor([[end - dropped for end, _ in seen]]),
            }
        with torch.no_grad():
            logits = lm.model(torch.tensor([tokens[dropped:]]), **arguments).logits[0, -1]
        allowed = logits.clone()
        allowed[lm.banned] = -torch.inf
        tokens.append(int(allowed.argmax()))
        logprobs.append(float(torch.log_softmax(logits.double(), 0)[tokens[-1]]))
        if wants is not None and wants(len(tokens) - 1 - found[-1][0], math.exp(logprobs[-1])):
            retrieve(len(tokens) - 1)
    return tokens[len(prompt) :], logprobs, [end for end, _ in found]
