"""Floating-point operations of a forward pass and of a training step, counted from the configuration.

Counted are matrix products (a product of [a, b] and [b, c] is 2abc), attention included; a training step is three
times the forward pass (the product, and one for each of its two gradients). Causal attention counts in full, as in
the usual reckoning (Chowdhery et al. 2022, appendix B); recomputation, inside fused attention kernels or by activation
checkpointing, does not count. Norms, activations, rotations, gates and softmax are left out (they cost time, but next
to no operations), and so are table look-ups.

Two questions are answered. *Nominal*: `sequence_flops`, a sequence all of whose neighbors are real, for planning and
comparing models. *Computed*: `batch_flops`, a given batch, without what the model leaves out of it (docs/concepts.md):
missing neighbors, padding, positions that are not scored, pairs of positions of two documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from retro.config.model import ModelConfig
from retro.model.retrieval_plan import RetrievalPlan, plan_retrieval


@dataclass(frozen=True)
class Flops:
    """Forward operations by part."""

    #: Decoder without chunked cross-attention: self-attention and feed-forward.
    decoder: int
    #: Vocabulary projection of the scored positions.
    head: int
    #: Encoder, including its attention to the retrieving chunks.
    encoder: int
    #: Chunked cross-attention of all RETRO layers.
    cross_attention: int
    #: Forward and backward when retrieval parameters alone are trained (a frozen backbone): no gradients of the
    #: decoder's weights, and none of its activations before the first RETRO layer.
    retrieval_training: int

    @property
    def forward(self) -> int:
        """All parts."""
        return self.decoder + self.head + self.encoder + self.cross_attention

    @property
    def training(self) -> int:
        """Forward and backward, all parameters trained."""
        return 3 * self.forward


@dataclass(frozen=True)
class RetrievalCounts:
    """How much a forward pass retrieves. rows: chunks with neighbors; encoded: neighbors that go through the encoder (
    rows * num_neighbors, fewer where some are missing or equal); num_neighbors K; retrieved_length R: tokens per
    neighbor, padding to the longest included."""

    rows: int
    encoded: int
    num_neighbors: int
    retrieved_length: int


def plan_counts(plan: RetrievalPlan) -> RetrievalCounts:
    """What a model computes that follows `plan`."""
    encoded, longest = plan.tokens.shape
    places = encoded if plan.neighbor_source is None else plan.neighbor_source.shape[0]
    return RetrievalCounts(places // plan.num_neighbors, encoded, plan.num_neighbors, longest)


def sequence_flops(
    config: ModelConfig,
    sequence_length: int,
    *,
    retrieved_chunks: int = 0,
    num_neighbors: int = 2,
    retrieved_length: int | None = None,
    scored: int | None = None,
) -> Flops:
    """Operations for one sequence of `sequence_length` tokens, one document.

    retrieved_chunks: how many chunks of the sequence have neighbors (0 = retrieval off; at most the complete chunks;
    the last chunk's serve a single position and are left out in training). num_neighbors, retrieved_length: K and R,
    all of them real tokens; R None = 2 M. scored: positions that go through the vocabulary projection, None = all.
    Raises ValueError if config.vocab_size is not set, or for retrieval with a plain GPT.
    """
    if retrieved_chunks and not config.is_retro:
        raise ValueError("retrieved_chunks: a plain GPT retrieves nothing")
    retrieved = 2 * config.chunk_length if retrieved_length is None else retrieved_length
    counts = RetrievalCounts(retrieved_chunks, retrieved_chunks * num_neighbors, num_neighbors, retrieved)
    scored = sequence_length if scored is None else scored
    return _count(config, sequence_length, sequence_length**2, scored, counts if retrieved_chunks else None)


def batch_flops(
    config: ModelConfig,
    batch: int,
    length: int,
    *,
    scored: int | None = None,
    neighbors_BLKR: Tensor | None = None,
    neighbor_mask_BLKR: Tensor | None = None,
    first_chunk_length: int | None = None,
    chunk_ends_BL: Tensor | None = None,
    document_starts_BN: Tensor | None = None,
) -> Flops:
    """Operations of RetroModel.forward on a batch [B, N] = [batch, length], of which `scored` positions (None = all)
    are scored; the other arguments as there.

    Shapes are those of the uncompiled model. A model with static shapes (compile: true), or one that masks other
    documents instead of cutting them off (on a GPU), also spends operations on what is masked. They are no part of the
    work to be done, and are not counted. Raises ValueError if config.vocab_size is not set.
    """
    plan = None
    gated_off = config.gate.kind == "fixed" and not _working_cross_layers(config)
    if neighbors_BLKR is not None and config.is_retro and not gated_off:
        chunk = config.chunk_length
        plan = plan_retrieval(
            neighbors_BLKR,
            neighbor_mask_BLKR,
            length=length,
            chunk_length=chunk,
            first_chunk_length=(length - 1) % chunk + 1 if first_chunk_length is None else first_chunk_length,
            chunk_ends_BL=chunk_ends_BL,
            document_starts_BN=document_starts_BN,
            merge_equal=not config.encoder.cross_attention_layers,
        )
    pairs = batch * length**2 if document_starts_BN is None else _pairs_within_documents(document_starts_BN)
    scored = batch * length if scored is None else scored
    return _count(config, batch * length, pairs, scored, None if plan is None else plan_counts(plan))


def _count(config: ModelConfig, tokens: int, pairs: int, scored: int, retrieval: RetrievalCounts | None) -> Flops:
    """pairs: positions times positions that each may attend to, the future included."""
    if config.vocab_size is None:
        raise ValueError("config.vocab_size: not set; the vocabulary projection cannot be counted")
    width, query_width = config.width, config.num_heads * config.head_size
    kv_width = config.kv_heads * config.head_size
    projections = _linear(tokens, width, query_width + 2 * kv_width) + _linear(tokens, query_width, width)
    attention = _attention(pairs, query_width)
    feed_forward = _feed_forward(config, tokens, width, config.ffn_size)
    decoder = config.num_layers * (projections + attention + feed_forward)
    head = _linear(scored, width, config.vocab_size)
    encoder = cross = 0
    training_frozen = decoder + 2 * head
    if retrieval is not None:
        encoder = _encoder(config, retrieval)
        queries = retrieval.rows * config.chunk_length
        keys_per_query = retrieval.num_neighbors * retrieval.retrieved_length
        cross = len(_working_cross_layers(config)) * (
            _linear(queries, width, query_width)
            + _linear(retrieval.encoded * retrieval.retrieved_length, config.encoder_width, 2 * kv_width)
            + _attention(queries * keys_per_query, query_width)
            + _linear(queries, query_width, width)
        )
        # What has no trained weight behind it has one gradient, not two; the scores of attention have theirs in full.
        first = min(_working_cross_layers(config))
        behind = config.num_layers - first
        training_frozen += behind * (projections + 2 * attention) + (behind + 1) * feed_forward
        if config.block == "parallel":
            training_frozen -= feed_forward  # of the first RETRO layer: it does not read what was retrieved
        training_frozen += 3 * (encoder + cross) - _input_projection(config, retrieval)
    return Flops(decoder, head, encoder, cross, training_frozen)


def _working_cross_layers(config: ModelConfig) -> Sequence[int]:
    """RETRO layers that are not switched off by a gate fixed at 0."""
    layers = config.cross_attention_layers
    if config.gate.kind == "learned":
        return layers
    return [layer for index, layer in enumerate(layers) if config.gate.of_layer(index) != 0.0]


def _pairs_within_documents(starts_BN: Tensor) -> int:
    """Sum of squared lengths of the documents of a batch; document_starts_BN as in RetroModel.forward."""
    length = starts_BN.shape[1]
    total = 0
    for row in starts_BN.tolist():
        begins = sorted({max(0, start) for start in row})
        total += sum((end - begin) ** 2 for begin, end in zip(begins, [*begins[1:], length], strict=True))
    return total


def _linear(rows: int, width_in: int, width_out: int) -> int:
    return 2 * rows * width_in * width_out


def _attention(pairs: int, width: int) -> int:
    """Scores and weighted sum of pairs of query and key, of all heads together `width` wide."""
    return 2 * 2 * pairs * width


def _feed_forward(config: ModelConfig, rows: int, width: int, hidden: int) -> int:
    return _linear(rows, width, hidden * (2 if config.ffn == "swiglu" else 1)) + _linear(rows, hidden, width)


def _encoder(config: ModelConfig, retrieval: RetrievalCounts) -> int:
    retrieved, width = retrieval.retrieved_length, config.encoder_width
    tokens, chunk = retrieval.encoded * retrieved, config.chunk_length
    heads = config.encoder_heads * config.encoder_head_size
    layer = (
        _linear(tokens, width, 3 * heads)
        + _attention(tokens * retrieved, heads)
        + _linear(tokens, heads, width)
        + _feed_forward(config, tokens, width, config.encoder_ffn_size)
    )
    conditioning = (
        _linear(tokens, width, heads)
        + _linear(retrieval.rows * chunk, config.width, 2 * heads)
        + _attention(tokens * chunk, heads)
        + _linear(tokens, heads, width)
    )
    return (
        _input_projection(config, retrieval)
        + config.encoder.num_layers * layer
        + len(config.encoder.cross_attention_layers) * conditioning
    )


def _input_projection(config: ModelConfig, retrieval: RetrievalCounts) -> int:
    """Embeddings to the encoder's width, where it is another."""
    width = config.encoder_width
    return 0 if width == config.width else _linear(retrieval.encoded * retrieval.retrieved_length, config.width, width)
