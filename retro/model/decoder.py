"""Decoder layers. A plain layer is FFW(ATTN(h)), a RETRO layer FFW(CCA(ATTN(h), E)), all pre-norm and residual.

Source: Borgeaud et al. 2022, algorithm 1 and equation 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from retro.config.model import ModelConfig
from retro.model.retrieval_plan import RetrievalPlan
from retro.nn.attention import AttentionShape, SelfAttention
from retro.nn.chunked_cross_attention import ChunkedCrossAttention, add_query_blocks, cut_query_blocks
from retro.nn.feed_forward import FeedForward
from retro.nn.norm import build_norm
from retro.nn.rotary import RotaryTable


def decoder_attention_shape(config: ModelConfig) -> AttentionShape:
    """Heads of the decoder's self-attention and of chunked cross-attention."""
    return AttentionShape(
        num_heads=config.num_heads,
        num_kv_heads=config.kv_heads,
        head_width=config.head_size,
        bias=config.bias,
        qk_norm=config.qk_norm,
        smear_keys=config.smear_keys,
        norm_eps=config.norm_eps,
        dropout=config.dropout,
    )


@dataclass(frozen=True)
class Retrieval:
    """What RETRO layers need besides the residual stream."""

    plan: RetrievalPlan
    #: Residual stream [B, N, D] -> encoded neighbors [A, R, D'].
    encode: Callable[[Tensor], Tensor]
    #: Factor of the cross-attention output (InstructRetro's gate).
    gate: float


class DecoderLayer(nn.Module):
    """One layer; `cross_attention` is None in a plain layer."""

    def __init__(self, config: ModelConfig, retro: bool):
        super().__init__()
        width = config.width
        shape = decoder_attention_shape(config)
        self.chunk_length = config.chunk_length
        self.attention_norm = build_norm(config.norm, width, config.norm_eps, config.bias)
        self.attention = SelfAttention(width, shape, causal=True)
        self.cross_attention = (
            ChunkedCrossAttention(
                width,
                config.encoder_width,
                shape,
                config.chunk_length,
                build_norm(config.norm, width, config.norm_eps, config.bias),
            )
            if retro
            else None
        )
        self.feed_forward_norm = build_norm(config.norm, width, config.norm_eps, config.bias)
        self.feed_forward = FeedForward(width, config.ffn_size, config.ffn, config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, rotary: RotaryTable, retrieval: Retrieval | None, encoded: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """x [B, N, D] -> (x [B, N, D], encoded neighbors or None).

        The first RETRO layer encodes the neighbors (`encoded` None), after its self-attention; later ones are given
        them.
        """
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary.rows(0, x.shape[1])))
        if self.cross_attention is not None and retrieval is not None:
            if encoded is None:
                encoded = retrieval.encode(x)
            x = self._add_cross_attention(x, encoded, rotary, retrieval)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), encoded

    def _add_cross_attention(self, x: Tensor, encoded: Tensor, rotary: RotaryTable, retrieval: Retrieval) -> Tensor:
        assert self.cross_attention is not None
        plan = retrieval.plan
        blocks = cut_query_blocks(x, plan.num_chunks, self.chunk_length, plan.first_chunk_length)
        num_blocks = blocks.shape[0]
        if plan.chunk_rows is not None:
            blocks = blocks.index_select(0, plan.chunk_rows)
        added = self.dropout(
            self.cross_attention(blocks, encoded, plan.num_neighbors, rotary, plan.neighbor_slots, plan.key_mask)
        )
        if retrieval.gate != 1.0:
            added = added * retrieval.gate
        if plan.chunk_rows is not None:
            added = added.new_zeros((num_blocks, *added.shape[1:])).index_copy(0, plan.chunk_rows, added)
        return add_query_blocks(x, added, plan.first_chunk_length)
