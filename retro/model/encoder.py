"""The encoder of neighbors: bidirectional over one neighbor's tokens, conditioned on the chunk that retrieved it.

Source: Borgeaud et al. 2022, algorithm 1; docs/concepts.md. Its weights are shared by all neighbors and chunks.
"""

from __future__ import annotations

from torch import Tensor, nn

from retro.config.model import ModelConfig
from retro.model.recompute import call_part
from retro.nn.attention import AttentionShape, CrossAttention, SelfAttention
from retro.nn.feed_forward import FeedForward
from retro.nn.linear import Linear
from retro.nn.norm import build_norm
from retro.nn.rotary import RotaryTable


def encoder_attention_shape(config: ModelConfig) -> AttentionShape:
    """The encoder's heads: never grouped, keys never smeared."""
    return AttentionShape(
        num_heads=config.encoder_heads,
        num_kv_heads=config.encoder_heads,
        head_width=config.encoder_head_size,
        bias=config.attention_has_bias,
        qk_norm=config.qk_norm,
        smear_keys=False,
        norm_eps=config.norm_eps,
        dropout=config.encoder.dropout,
    )


class ChunkConditioning(nn.Module):
    """Cross-attention from neighbor tokens to the M activations of the retrieving chunk; pre-norm, without the
    residual.

    Keys and values are made once per chunk and serve all its neighbors. Neighbor token i' has position i', chunk
    token j position j (distance i' - j, Borgeaud et al. B.1.2).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.encoder_width
        self.norm = build_norm(config.norm, width, config.norm_eps, config.bias)
        self.chunk_norm = build_norm(config.norm, config.width, config.norm_eps, config.bias)
        self.attention = CrossAttention(width, config.width, encoder_attention_shape(config))

    def forward(
        self,
        x: Tensor,
        chunks: Tensor,
        rotary: RotaryTable,
        num_neighbors: int,
        neighbor_slots: Tensor | None,
        chunk_mask: Tensor | None,
    ) -> Tensor:
        """x [A, R, D'], chunks [rows, M, D], chunk_mask bool [rows, M] or None -> [A, R, D'].

        With neighbor_slots None, A = rows * num_neighbors; otherwise neighbor_slots // num_neighbors is the row of
        each.
        """
        keys, values = self.attention.project_keys(self.chunk_norm(chunks), rotary.rows(0, chunks.shape[1]))
        queries = self.attention.project_queries(self.norm(x), rotary.rows(0, x.shape[1]))
        if neighbor_slots is None:
            # The queries of a chunk's neighbors do not see each other: lay them side by side, repeat no key.
            queries = queries.reshape(chunks.shape[0], num_neighbors * x.shape[1], *queries.shape[2:])
        else:
            rows = neighbor_slots // num_neighbors
            keys, values = keys.index_select(0, rows), values.index_select(0, rows)
            chunk_mask = None if chunk_mask is None else chunk_mask.index_select(0, rows)
        return self.attention(queries, keys, values, chunk_mask).reshape(x.shape)


class EncoderLayer(nn.Module):
    """Self-attention, optional conditioning on the retrieving chunk, feed-forward; all pre-norm and residual."""

    def __init__(self, config: ModelConfig, conditioned: bool):
        super().__init__()
        width = config.encoder_width
        self.attention_norm = build_norm(config.norm, width, config.norm_eps, config.bias)
        self.attention = SelfAttention(width, encoder_attention_shape(config), causal=False)
        self.conditioning = ChunkConditioning(config) if conditioned else None
        self.feed_forward_norm = build_norm(config.norm, width, config.norm_eps, config.bias)
        # The encoder's activations are what makes RETRO's memory: it has several times the decoder's tokens.
        self.feed_forward = FeedForward(width, config.encoder_ffn_size, config.ffn, config.ffn_has_bias, recompute=True)
        self.dropout = nn.Dropout(config.encoder.dropout)

    def forward(
        self,
        x: Tensor,
        token_mask: Tensor | None,
        chunks: Tensor,
        rotary: RotaryTable,
        num_neighbors: int,
        neighbor_slots: Tensor | None,
        chunk_mask: Tensor | None,
        checkpointed: frozenset[str] = frozenset(),
    ) -> Tensor:
        """x [A, R, D'] -> [A, R, D']; the other arguments as in Encoder.forward."""
        slots, mask = neighbor_slots, chunk_mask
        return call_part(
            "encoder", checkpointed, self._encode, x, token_mask, chunks, rotary, num_neighbors, slots, mask
        )

    def _encode(
        self,
        x: Tensor,
        token_mask: Tensor | None,
        chunks: Tensor,
        rotary: RotaryTable,
        num_neighbors: int,
        neighbor_slots: Tensor | None,
        chunk_mask: Tensor | None,
    ) -> Tensor:
        mixed = self.attention(self.attention_norm(x), rotary.rows(0, x.shape[1]), token_mask)
        x = x + self.dropout(mixed)
        if self.conditioning is not None:
            conditioned = self.conditioning(x, chunks, rotary, num_neighbors, neighbor_slots, chunk_mask)
            x = x + self.dropout(conditioned)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Encoder(nn.Module):
    """Encodes neighbors that are given as token embeddings of the decoder's (shared) table."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.encoder_width
        self.input = Linear(config.width, width, bias=config.bias) if width != config.width else None
        self.dropout = nn.Dropout(config.encoder.dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(config, conditioned=number in config.encoder.cross_attention_layers)
            for number in range(1, config.encoder.num_layers + 1)
        )
        self.norm = build_norm(config.norm, width, config.norm_eps, config.bias)

    def forward(
        self,
        embedded: Tensor,
        token_mask: Tensor | None,
        chunks: Tensor,
        rotary: RotaryTable,
        num_neighbors: int,
        neighbor_slots: Tensor | None = None,
        chunk_mask: Tensor | None = None,
        checkpointed: frozenset[str] = frozenset(),
    ) -> Tensor:
        """Returns the encoded neighbors [A, R, D'], normed.

        embedded [A, R, D]: A neighbors with at least one real token each; token_mask bool [A, R] or None = all real;
        chunks [rows, M, D]: residual stream of the retrieving chunks, after the self-attention of the first RETRO
        layer; rotary: positions from 0 on, at least max(R, M); num_neighbors, neighbor_slots, chunk_mask: see
        RetrievalPlan; with "encoder" among `checkpointed` the layers' activations are computed again in the backward
        pass.
        """
        x = self.dropout(embedded if self.input is None else self.input(embedded))
        for layer in self.layers:
            x = layer(x, token_mask, chunks, rotary, num_neighbors, neighbor_slots, chunk_mask, checkpointed)
        return self.norm(x)
