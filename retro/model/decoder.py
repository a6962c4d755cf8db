"""Decoder layers. A plain layer is FFW(ATTN(h)), a RETRO layer FFW(CCA(ATTN(h), E)), all pre-norm and residual.

Source: Borgeaud et al. 2022, algorithm 1 and equation 2.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from retro.config.model import ModelConfig
from retro.model.recompute import call_part
from retro.model.retrieval_plan import RetrievalPlan
from retro.nn.attention import AttentionShape, SelfAttention
from retro.nn.chunked_cross_attention import ChunkedCrossAttention
from retro.nn.documents import Documents
from retro.nn.feed_forward import FeedForward
from retro.nn.norm import build_norm
from retro.nn.rotary import RotaryTable


def decoder_attention_shape(config: ModelConfig) -> AttentionShape:
    """Heads of the decoder's self-attention and of chunked cross-attention."""
    return AttentionShape(
        num_heads=config.num_heads,
        num_kv_heads=config.kv_heads,
        head_width=config.head_size,
        bias=config.attention_has_bias,
        qk_norm=config.qk_norm,
        smear_keys=config.smear_keys,
        norm_eps=config.norm_eps,
        dropout=config.dropout,
    )


class Surroundings:
    """What all layers of one forward pass share.

    rotary: positions of self-attention, None where they are learned; documents: None = one per sequence; checkpointed:
    parts whose activations are not kept. plan: the neighbors, None = none, and then the rest is not read; cross_rotary:
    positions of chunked cross-attention; gate: a factor besides the layers' own; encode: neighbors of a plan and
    activations [rows, M, D] of the retrieving chunks -> encoded neighbors [A, R, D'].

    Not a dataclass: FSDP takes dataclasses among the arguments apart, layer by layer.
    """

    def __init__(
        self,
        rotary: RotaryTable | None,
        documents: Documents | None,
        checkpointed: frozenset[str],
        plan: RetrievalPlan | None,
        cross_rotary: RotaryTable | None,
        gate: float,
        encode: Callable[[RetrievalPlan, Tensor], Tensor],
    ) -> None:
        self.rotary, self.documents, self.checkpointed = rotary, documents, checkpointed
        self.plan, self.cross_rotary, self.gate, self.encode = plan, cross_rotary, gate, encode


class DecoderLayer(nn.Module):
    """One layer, in three steps that training and cached generation share: `attend`, `retrieve` (in a RETRO layer; the
    first of them has the neighbors encoded after its `attend`), `finish`. A call of the layer takes them all, so that
    FSDP gathers its weights once.

    number: 1-based. `cross_attention` is None in a plain layer.
    """

    def __init__(self, config: ModelConfig, number: int):
        super().__init__()
        width = config.width
        shape = decoder_attention_shape(config)
        self.is_parallel = config.block == "parallel"
        self.attention_norm = build_norm(config.norm, width, config.norm_eps, config.bias)
        self.attention = SelfAttention(width, shape, causal=True)
        self.cross_attention: ChunkedCrossAttention | None = None
        if number in config.cross_attention_layers:
            self.cross_attention = ChunkedCrossAttention(
                width,
                config.encoder_width,
                shape,
                config.chunk_length,
                build_norm(config.norm, width, config.norm_eps, config.bias),
                gate_value=config.gate.of_layer(config.cross_attention_layers.index(number)),
                learned_gate=config.gate.kind == "learned",
            )
        self.feed_forward_norm = build_norm(config.norm, width, config.norm_eps, config.bias)
        self.feed_forward = FeedForward(width, config.ffn_size, config.ffn, config.ffn_has_bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, encoded: Tensor | None, around: Surroundings) -> tuple[Tensor, Tensor | None]:
        """x [B, N, D] and the encoded neighbors [A, R, D'] (None as long as no layer had them encoded) -> the layer's
        output [B, N, D], and the encoded neighbors if this layer had them encoded, else None."""
        parts, made = around.checkpointed, None
        attended = call_part("decoder", parts, self.attend_sequence, x, around.rotary, around.documents)
        if around.plan is not None and self.cross_attention is not None:
            if encoded is None:
                encoded = made = around.encode(around.plan, around.plan.cut_chunks(attended))
            if not self.cross_attention.is_off:
                retrieval = (around.plan, around.cross_rotary, around.gate)
                attended = call_part("cross_attention", parts, self.retrieve, attended, encoded, *retrieval)
        return call_part("decoder", parts, self.finish, x, attended), made

    def attend_sequence(self, x: Tensor, rotary: RotaryTable | None, documents: Documents | None) -> Tensor:
        """x [B, N, D] plus self-attention over the whole sequence."""

        def mix(normed: Tensor) -> Tensor:
            return self.attention(normed, rotary, documents=documents)

        return self.attend(x, mix)

    def attend(self, x: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
        """x [B, N, D] plus self-attention; `mix` makes it of the normed x, [B, N, D] -> [B, N, D]."""
        return x + self.dropout(mix(self.attention_norm(x)))

    def retrieve(
        self, attended: Tensor, encoded: Tensor, plan: RetrievalPlan, rotary: RotaryTable, gate: float
    ) -> Tensor:
        """`attended` [B, N, D] plus gated cross-attention to the encoded neighbors [A, R, D'] where the plan says.

        gate: a factor besides the layer's own."""
        keys, values = self.project_neighbors(encoded, plan, rotary)
        return self.serve(attended, keys, values, plan, rotary, gate)

    def project_neighbors(self, encoded: Tensor, plan: RetrievalPlan, rotary: RotaryTable) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, K R, Hkv, E] of cross-attention for encoded neighbors [A, R, D']."""
        assert self.cross_attention is not None
        return self.cross_attention.project_neighbors(encoded, plan.num_neighbors, rotary, plan.neighbor_source)

    def serve(
        self, attended: Tensor, keys: Tensor, values: Tensor, plan: RetrievalPlan, rotary: RotaryTable, gate: float
    ) -> Tensor:
        """The second half of `retrieve`, with the projected neighbors."""
        assert self.cross_attention is not None
        blocks, chunk = plan.cut_query_blocks(attended), plan.chunk_length
        added = self.attend_neighbors(blocks, keys, values, rotary.rows(chunk - 1, 2 * chunk - 1), plan.key_mask, gate)
        return plan.add_query_blocks(attended, added)

    def attend_neighbors(
        self, queries: Tensor, keys: Tensor, values: Tensor, rotary: RotaryTable, key_mask: Tensor | None, gate: float
    ) -> Tensor:
        """Gated cross-attention of the residual stream `queries` [rows, T, D] at the positions of `rotary`, without the
        residual; key_mask bool [rows, K R] or None."""
        assert self.cross_attention is not None
        added = self.dropout(self.cross_attention.attend(queries, keys, values, rotary, key_mask))
        return added if gate == 1.0 else added * gate

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """`attended` [B, N, D] plus the feed-forward block of it, or in a parallel layer of the layer's input x."""
        source = x if self.is_parallel else attended
        return attended + self.dropout(self.feed_forward(self.feed_forward_norm(source)))
