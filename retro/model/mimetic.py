"""Mimetic initialisation: attention starts as "look at tokens like me and copy", which short training does not find.

After Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention Layers": trained attention layers show
W_q W_k^T near a multiple of the identity and W_v W_o near another. Here W_q = W_k, and W_o is OUTPUT_SHARE times the
transpose of an orthonormal W_v. With smeared keys most of each key starts as its predecessor's: a token then attends to
what *follows* its like, which is an induction head in self-attention and copying from neighbors in chunked
cross-attention. GPT and RETRO get the same treatment in the layers that both have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from retro.config.model import ModelConfig
from retro.model.random_stream import stream
from retro.model.shards import fill_parameter

if TYPE_CHECKING:
    from retro.nn.attention import AttentionShape

#: Size of what attention adds to the residual stream at the start, relative to a normalised embedding. Of 0.3 and 0.6,
#: 0.3 trained better (docs/lab_log.md).
OUTPUT_SHARE = 0.3
#: Smear weight at the start: sigmoid(-1) = 27 % own key, 73 % the predecessor's.
SMEAR_WEIGHT = -1.0
#: Factor on queries at the start: how sharply a token picks its like. 1 leaves the match of 128 to 512 keys too soft to
#: be of use, and then it takes many times as long to be learned (docs/lab_log.md).
QUERY_SCALE = 2.0


@torch.no_grad()
def set_mimetic(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Set decoder self-attention and chunked cross-attention of a RetroModel in place.

    Where the encoder has another width, its input projection is made orthonormal and queries, keys and values are
    compared and copied in the encoder's space.
    """
    space: Tensor | None = None
    encoder = cast(Any, model).encoder
    if encoder is not None and encoder.input is not None:
        weight = encoder.input.weight
        drawn = _orthonormal(weight.shape[0], weight.shape[1], stream(seed, "encoder.input.mimetic"))
        fill_parameter(encoder.input.weight, drawn)
        space = drawn.to(weight.dtype).float()
    for number, layer in enumerate(cast(Any, model).layers):
        attention = layer.attention
        query, key, value, out = _weights(attention.shape, config.width, None, stream(seed, f"layers.{number}.mimetic"))
        fused = attention.query_key_value
        fill_parameter(fused.weight, torch.cat((query, key, value)), fused.row_order)
        fill_parameter(attention.out.weight, out)
        _sharpen(attention)
        if layer.cross_attention is not None:
            attention = layer.cross_attention.attention
            generator = stream(seed, f"layers.{number}.cross_attention.mimetic")
            query, key, value, out = _weights(attention.shape, config.width, space, generator)
            fill_parameter(attention.query.weight, query)
            fused = attention.key_value
            fill_parameter(fused.weight, torch.cat((key, value)), fused.row_order)
            fill_parameter(attention.out.weight, out)
            _sharpen(attention)


def _sharpen(attention: Any) -> None:
    """Scale of the match, and the share of the predecessor in the keys."""
    if attention.preparation.query_norm is not None:
        attention.preparation.query_norm.weight.fill_(QUERY_SCALE)
    if attention.preparation.smear is not None:
        attention.preparation.smear.weight.fill_(SMEAR_WEIGHT)


def _weights(
    shape: AttentionShape, width: int, space: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(query [H*E, D], key [Hkv*E, D'], value [Hkv*E, D'], out [D, H*E]); `space` [D', D] maps D to the keys' D'."""
    key_width = width if space is None else space.shape[0]
    kv_size, group = shape.num_kv_heads * shape.head_width, shape.num_heads // shape.num_kv_heads
    key = torch.randn(kv_size, key_width, generator=generator) / key_width**0.5
    value = _orthonormal(kv_size, key_width, generator)

    def per_query_head(weight: Tensor) -> Tensor:
        heads = weight.view(shape.num_kv_heads, shape.head_width, key_width)
        repeated = heads.repeat_interleave(group, dim=0).reshape(-1, key_width)
        return repeated if space is None else repeated @ space

    # With qk_norm the scale is that of the norm; without, it is in the projection.
    query = per_query_head(key) * (1.0 if shape.qk_norm else QUERY_SCALE)
    out = OUTPUT_SHARE / group * per_query_head(value).t()
    return query, key, value, out


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """[rows, columns] with orthonormal rows (or columns, whichever are fewer)."""
    drawn = torch.randn(max(rows, columns), min(rows, columns), generator=generator)
    basis = torch.linalg.qr(drawn)[0]
    return basis.t().contiguous() if rows <= columns else basis
