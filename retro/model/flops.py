"""Floating-point operations of a training step, counted from the configuration.

Counted are matrix products (a product of [a, b] and [b, c] is 2abc), attention included; a training step is three
times the forward pass (the product, and one for each of its two gradients). Causal attention counts in full, as in
the usual reckoning (Chowdhery et al. 2022, appendix B); recomputation inside fused attention kernels does not count.
Norms, activations, rotations and softmax are left out (they cost time, but next to no operations).
"""

from __future__ import annotations

from dataclasses import dataclass

from retro.config.model import ModelConfig


@dataclass(frozen=True)
class SequenceFlops:
    """Forward operations of one sequence, by part."""

    #: Decoder without chunked cross-attention: self-attention and feed-forward.
    decoder: int
    #: Vocabulary projection of the scored positions.
    head: int
    #: Encoder, including its attention to the retrieving chunks.
    encoder: int
    #: Chunked cross-attention of all RETRO layers.
    cross_attention: int

    @property
    def forward(self) -> int:
        return self.decoder + self.head + self.encoder + self.cross_attention

    @property
    def training(self) -> int:
        """Forward and backward."""
        return 3 * self.forward


def sequence_flops(
    config: ModelConfig,
    sequence_length: int,
    *,
    retrieved_chunks: int = 0,
    num_neighbors: int = 2,
    retrieved_length: int | None = None,
    scored: int | None = None,
) -> SequenceFlops:
    """Operations for one sequence of `sequence_length` tokens.

    retrieved_chunks: how many chunks of the sequence have neighbors (0 = retrieval off; at most the complete chunks;
    the last chunk's serve a single position and are left out in training). num_neighbors, retrieved_length: K and R,
    all of them real tokens; R None = 2 M. scored: positions that go through the vocabulary projection, None = all.
    Raises ValueError if config.vocab_size is not set, or for retrieval with a plain GPT.
    """
    if config.vocab_size is None:
        raise ValueError("config.vocab_size: not set; the vocabulary projection cannot be counted")
    if retrieved_chunks and not config.is_retro:
        raise ValueError("retrieved_chunks: a plain GPT retrieves nothing")
    length, width, chunk = sequence_length, config.width, config.chunk_length
    retrieved = 2 * chunk if retrieved_length is None else retrieved_length
    query_width, kv_width = config.num_heads * config.head_size, config.kv_heads * config.head_size
    layer = (
        _linear(length, width, query_width + 2 * kv_width)
        + _attention(length, length, query_width)
        + _linear(length, query_width, width)
        + _feed_forward(config, length, width, config.ffn_size)
    )
    head = _linear(length if scored is None else scored, width, config.vocab_size)
    encoder = cross = 0
    if retrieved_chunks:
        encoder = _encoder(config, retrieved_chunks, num_neighbors, retrieved)
        queries, keys = retrieved_chunks * chunk, retrieved_chunks * num_neighbors * retrieved
        cross = len(config.cross_attention_layers) * (
            _linear(queries, width, query_width)
            + _linear(keys, config.encoder_width, 2 * kv_width)
            + _attention(queries, num_neighbors * retrieved, query_width)
            + _linear(queries, query_width, width)
        )
    return SequenceFlops(config.num_layers * layer, head, encoder, cross)


def _linear(rows: int, width_in: int, width_out: int) -> int:
    return 2 * rows * width_in * width_out


def _attention(queries: int, keys: int, width: int) -> int:
    """Scores and weighted sum, of all heads together `width` wide."""
    return 2 * 2 * queries * keys * width


def _feed_forward(config: ModelConfig, rows: int, width: int, hidden: int) -> int:
    return _linear(rows, width, hidden * (2 if config.ffn == "swiglu" else 1)) + _linear(rows, hidden, width)


def _encoder(config: ModelConfig, chunks: int, num_neighbors: int, retrieved: int) -> int:
    tokens, width = chunks * num_neighbors * retrieved, config.encoder_width
    heads = config.encoder_heads * config.encoder_head_size
    layer = (
        _linear(tokens, width, 3 * heads)
        + _attention(tokens, retrieved, heads)
        + _linear(tokens, heads, width)
        + _feed_forward(config, tokens, width, config.encoder_ffn_size)
    )
    conditioning = (
        _linear(tokens, width, heads)
        + _linear(chunks * config.chunk_length, config.width, 2 * heads)
        + _attention(tokens, config.chunk_length, heads)
        + _linear(tokens, heads, width)
    )
    projection = _linear(tokens, config.width, width) if width != config.width else 0
    return projection + config.encoder.num_layers * layer + len(config.encoder.cross_attention_layers) * conditioning
