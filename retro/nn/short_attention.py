"""Attention written out as two matrix products, for bfloat16 on a CPU and short sequences.

torch's fused CPU kernel is written for long sequences in float32. For bfloat16 and the short ones of retrieval (chunks,
neighbors) its backward pass is two to four times slower than plain products (measured with benchmarks/kernels.py on
AVX512-BF16: 56 sequences of 128 tokens, forward and backward, 69 ms against 23 ms), which run at the full bfloat16
rate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Largest product of query and key counts for which writing it out is faster (and the score matrix still small).
MOST_SCORES = 512 * 512


def is_short_attention(queries: Tensor, keys: Tensor) -> bool:
    """Whether `short_attention` is the better choice for queries [S, T, H, E] and keys [S, T', Hkv, E]."""
    return (
        queries.device.type == "cpu"
        and queries.dtype == torch.bfloat16
        and queries.shape[1] * keys.shape[1] <= MOST_SCORES
    )


def short_attention(
    queries: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None, causal: bool, dropout: float
) -> Tensor:
    """As retro.nn.attention.attend; the scores are rounded to the input's dtype, the softmax accumulates in float32."""
    batch, length, heads, size = queries.shape
    key_length, kv_heads = keys.shape[1:3]
    group = heads // kv_heads
    # [S * Hkv, G * T, E]: the query heads of a key-value head side by side, no key repeated.
    queries = (queries * size**-0.5).unflatten(2, (kv_heads, group)).permute(0, 2, 3, 1, 4)
    queries = queries.reshape(batch * kv_heads, group * length, size)
    keys = keys.transpose(1, 2).reshape(batch * kv_heads, key_length, size)
    values = values.transpose(1, 2).reshape(batch * kv_heads, key_length, size)
    scores = torch.bmm(queries, keys.transpose(1, 2)).view(batch, kv_heads, group, length, key_length)
    if causal:
        hidden = torch.ones(length, key_length, dtype=torch.bool, device=scores.device).triu_(1)
        scores = scores + _minus_infinity_where(hidden, scores.dtype)
    if mask is not None:
        # [S, H or 1, T or 1, T'] -> [S, Hkv or 1, G or 1, T or 1, T']
        grouped = mask.unsqueeze(2) if mask.shape[1] == 1 else mask.unflatten(1, (kv_heads, group))
        scores = scores + _minus_infinity_where(~grouped, scores.dtype)
    shares = torch.softmax(scores, dim=-1)
    if dropout:
        shares = F.dropout(shares, dropout)
    mixed = torch.bmm(shares.view(batch * kv_heads, group * length, key_length), values)
    return mixed.view(batch, kv_heads, group, length, size).permute(0, 3, 1, 2, 4).flatten(2)


def _minus_infinity_where(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
