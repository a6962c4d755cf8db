"""What an attention layer keeps for the backward pass, in bytes (retro/nn/attention.py, operation by operation)."""

from __future__ import annotations

from dataclasses import dataclass

from retro.nn.attention import AttentionShape
from retro.nn.short_attention import MOST_SCORES


@dataclass(frozen=True)
class Arithmetic:
    """How numbers are held. product: bytes of what matrix products give (2 under autocast to bfloat16; the residual
    stream is float32); on_cpu: which kernels there are; tensor: processes that share the heads and the hidden units of
    each layer; frozen: the decoder has no gradients of weights."""

    product: int
    on_cpu: bool = False
    tensor: int = 1
    frozen: bool = False

    @property
    def mask(self) -> int:
        """Bytes of dropout's record per number that was not of the residual stream."""
        return self.product if self.on_cpu else 1


@dataclass(frozen=True)
class Norm:
    """kind: of the configuration; width: of what is normed."""

    kind: str
    width: int

    def kept(self, tokens: int, arithmetic: Arithmetic, *, trained: bool = True) -> int:
        """Statistics, and the normed values as the matrix product after it takes them. Not the input: that is the
        residual stream, which others keep too."""
        statistics = 8 if self.kind == "layernorm" else 4
        return tokens * (statistics + arithmetic.product * self.width * trained)


def attention_kept(
    queries: int, keys: int, keys_per_query: int, queries_per_row: int, shape: AttentionShape, arithmetic: Arithmetic
) -> int:
    """Scaled dot product attention: queries, keys, values, result, and what the kernel keeps besides.

    queries, keys: tokens of the whole batch. What is kept of the fused projections that queries, keys and values are
    views of is not here: `projections_kept`."""
    heads, size = shape.num_heads // arithmetic.tensor, arithmetic.product
    out = queries * heads * shape.head_width * size
    if not _is_written_out(queries_per_row, keys_per_query, shape, arithmetic):
        return out + queries * heads * 4  # the logarithm of each softmax's sum
    # Copies of queries, keys and values in the layout of a batched product, the shares, and with dropout its record
    # and the shares after it.
    kv = shape.num_kv_heads // arithmetic.tensor
    copies = (queries * heads + 2 * keys * kv) * shape.head_width * size
    return out + copies + queries * heads * keys_per_query * size * (3 if shape.dropout else 1)


def projections_kept(
    queries: int,
    keys: int,
    keys_per_query: int,
    queries_per_row: int,
    shape: AttentionShape,
    arithmetic: Arithmetic,
    *,
    fused: bool,
    rotated: bool,
) -> int:
    """Projected queries, keys and values, and the steps between projection and attention. fused: one product gives all
    three (self-attention), else keys and values come of one and queries of another."""
    heads, kv = shape.num_heads // arithmetic.tensor, shape.num_kv_heads // arithmetic.tensor
    size, width = arithmetic.product, shape.head_width
    both = queries * heads + keys * kv
    kept = 0
    if shape.qk_norm:
        kept += both * (4 + (4 * width if size < 4 else 0))  # RMSNorm: 1 / norm of each head, and a float32 copy
        kept += 0 if fused or size < 4 else queries * heads * width * size  # else the values hold it
    if shape.smear_keys:
        kept += keys * kv * width * size * (2 if shape.qk_norm else 1)  # the keys before, and normed ones
    if _is_written_out(queries_per_row, keys_per_query, shape, arithmetic):
        # Copies were made of all; float32 norms, and smearing without norms, still hold the projection.
        holds = (size == 4) if shape.qk_norm else shape.smear_keys
        return kept + ((both + keys * kv) * width * size if holds else 0)
    prepared = rotated or shape.qk_norm or shape.smear_keys
    kept += (both if prepared or not fused else 0) * width * size  # rotated queries and keys
    # Values are a view of the projection, so the whole of it stays.
    kept += (queries * heads + 2 * keys * kv if fused else 2 * keys * kv) * width * size
    return kept


def _is_written_out(queries_per_row: int, keys_per_query: int, shape: AttentionShape, arithmetic: Arithmetic) -> bool:
    """Whether the matrix of scores is held: short sequences in bfloat16 on a CPU, and any with dropout there."""
    if not arithmetic.on_cpu:
        return False
    short = arithmetic.product < 4 and queries_per_row * keys_per_query <= MOST_SCORES
    return short or shape.dropout > 0
