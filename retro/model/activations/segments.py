"""What the forward pass keeps for the backward pass, segment by segment, and the most of it at any time.

Counted from the operations of the uncompiled model: the storage of every tensor that autograd saves, once. Neighbors
are planned as all real, as a batch may have them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from retro.config.model import ModelConfig
from retro.model.activations.attention import Arithmetic, Norm, attention_kept, projections_kept
from retro.model.decoder import decoder_attention_shape
from retro.model.encoder import encoder_attention_shape
from retro.nn.cross_entropy import positions_per_block

#: Bytes of a number of the residual stream.
RESIDUAL = 4

Part = Literal["decoder", "cross_attention", "encoder"]


@dataclass(frozen=True)
class Batch:
    """Sizes of one micro-batch. sequences B, length N, num_neighbors K, retrieved R, chunks: that retrieve, of all
    sequences together (0 = a GPT); packed: several documents in a sequence."""

    sequences: int
    length: int
    chunk_length: int
    num_neighbors: int = 0
    retrieved: int = 0
    chunks: int = 0
    packed: bool = False

    @property
    def tokens(self) -> int:
        """B N."""
        return self.sequences * self.length

    @property
    def queries(self) -> int:
        """Positions that neighbors serve."""
        return self.chunks * self.chunk_length

    @property
    def neighbor_tokens(self) -> int:
        """Tokens that go through the encoder."""
        return self.chunks * self.num_neighbors * self.retrieved


@dataclass(frozen=True)
class Segment:
    """A stretch of the forward pass, bytes. kept: until its backward pass; whole: once it is made again
    where it is checkpointed, else the same; working: gradients within it at a time, while its backward pass runs."""

    part: Part
    kept: int
    whole: int
    working: int


@dataclass(frozen=True)
class Activations:
    """Bytes at the time when they and what is computed from them are most. kept: by part; recomputed: of the segment
    whose backward pass runs, where it is checkpointed, and its gradients; loss: logits of a block, gradients of hidden
    states and of the vocabulary's matrix; or what is left of them in the backward pass. whole: by part, without any
    activation checkpointing."""

    kept: dict[str, int]
    recomputed: int
    loss: int
    whole: dict[str, int]

    @property
    def total(self) -> int:
        """All at that time."""
        return sum(self.kept.values()) + self.recomputed + self.loss


def most_activations(
    config: ModelConfig, batch: Batch, arithmetic: Arithmetic, checkpointed: frozenset[str], after_loss: int = 0
) -> Activations:
    """The most bytes of one forward and backward pass: at its middle, or when a checkpointed part is made again.

    after_loss: bytes that are held besides from the loss's backward pass on."""
    segments = list(forward_segments(config, batch, arithmetic, checkpointed))
    whole = _by_part(forward_segments(config, batch, arithmetic, frozenset()))
    best = Activations(_by_part(segments), 0, loss_bytes(config, batch, arithmetic), whole)
    for end in range(len(segments), 0, -1):
        last = segments[end - 1]
        again = last.whole - last.kept if last.part in checkpointed else 0
        candidate = Activations(_by_part(segments[:end]), again + last.working, after_loss, whole)
        best = max(best, candidate, key=lambda found: found.total)
    return best


def forward_segments(
    config: ModelConfig, batch: Batch, arithmetic: Arithmetic, checkpointed: frozenset[str]
) -> Iterator[Segment]:
    """The segments in the order of the forward pass."""
    residual = RESIDUAL * config.width * batch.tokens
    first = min(config.cross_attention_layers) if batch.chunks else config.num_layers + 1
    # Of a frozen decoder nothing is kept before the first place that a trained weight has reached.
    yield _segment("decoder", _embedding(config, batch, arithmetic), 0, "", checkpointed, 0)
    for number in range(1, config.num_layers + 1):
        silent = arithmetic.frozen and number <= first
        inside = 0 if silent else _self_attention(config, batch, arithmetic)
        heads = (config.num_heads + 2 * config.kv_heads) * config.head_size // arithmetic.tensor
        working = 2 * residual + 2 * batch.tokens * heads * arithmetic.product
        yield _segment("decoder", inside, 0 if silent else residual, "decoder", checkpointed, working)
        if batch.chunks and number in config.cross_attention_layers:
            if number == first:
                yield from encoder_segments(config, batch, arithmetic, checkpointed)
            if _gate_is_open(config, number):
                yield _cross_attention(config, batch, arithmetic, checkpointed)
        if not (silent and (number < first or config.block == "parallel")):
            yield _feed_forward(config, batch, arithmetic, checkpointed)
    final = Norm(config.norm, config.width).kept(batch.tokens, arithmetic, trained=False)
    yield _segment("decoder", final + residual, 0, "", checkpointed, 0)


def encoder_segments(
    config: ModelConfig, batch: Batch, arithmetic: Arithmetic, checkpointed: frozenset[str]
) -> Iterator[Segment]:
    """Embedding of the neighbors, encoder layers, final norm."""
    tokens, width, shape = batch.neighbor_tokens, config.encoder_width, encoder_attention_shape(config)
    arithmetic = replace(arithmetic, frozen=False)
    product, dropout = arithmetic.product, config.encoder.dropout > 0
    residual = tokens * width * RESIDUAL
    # Norms keep their input in float32; what flows is what the input projection, a product, has made of it.
    stream = tokens * width * (RESIDUAL if width == config.width else product)
    norm, chunk_norm = Norm(config.norm, width), Norm(config.norm, config.width)
    mask = tokens * width * arithmetic.mask if dropout else 0
    start = tokens * 8  # ids
    if width != config.width:
        start += tokens * config.width * product
    if config.embedding_norm:
        start += tokens * (config.width * 4 + 4)
    start += tokens * width * (RESIDUAL if arithmetic.on_cpu else 1) if dropout else 0
    # Activations of the retrieving chunks, cut out of the sequences.
    if batch.sequences > 1 and (config.encoder.cross_attention_layers or "encoder" in checkpointed):
        start += batch.queries * config.width * RESIDUAL
    yield _segment("encoder", start, 0, "", checkpointed, 0)
    hidden = config.encoder_ffn_size // arithmetic.tensor * (2 if config.ffn == "swiglu" else 1)
    for number in range(1, config.encoder.num_layers + 1):
        inside = norm.kept(tokens, arithmetic) + mask
        row = batch.retrieved
        inside += projections_kept(tokens, tokens, row, row, shape, arithmetic, fused=True, rotated=True)
        inside += attention_kept(tokens, tokens, row, row, shape, arithmetic)
        if number in config.encoder.cross_attention_layers:
            row = batch.num_neighbors * batch.retrieved
            inside += norm.kept(tokens, arithmetic) + chunk_norm.kept(batch.queries, arithmetic) + mask + residual
            sizes = (tokens, batch.queries, batch.chunk_length, row, shape, arithmetic)
            inside += projections_kept(*sizes, fused=False, rotated=True) + attention_kept(*sizes)
        inside += residual + norm.kept(tokens, arithmetic) + mask + tokens * hidden * product + residual - stream
        # The feed-forward block's activation is made again, and has a gradient like its input.
        working = 2 * residual + tokens * product * (hidden + 2 * config.encoder_ffn_size // arithmetic.tensor)
        yield _segment("encoder", inside, stream, "encoder", checkpointed, working)
    # Every RETRO layer reads the normed result, as it is where it has the products' dtype, else through copies.
    result = encoded_bytes(config, arithmetic)
    keeps_result = product == result or "cross_attention" in checkpointed
    final = norm.kept(tokens, arithmetic, trained=False) + residual + tokens * width * result * keeps_result
    yield _segment("encoder", final, 0, "", checkpointed, residual)


def encoded_bytes(config: ModelConfig, arithmetic: Arithmetic) -> int:
    """Bytes of a number of the encoder's result. A GPU's autocast has layer norms give float32."""
    if config.encoder_width == config.width or (config.norm == "layernorm" and not arithmetic.on_cpu):
        return RESIDUAL
    return arithmetic.product


def loss_bytes(config: ModelConfig, batch: Batch, arithmetic: Arithmetic) -> int:
    """Vocabulary projection and cross-entropy (retro/nn/cross_entropy.py): gradients of hidden states and of the matrix
    [V, D] in float32, a block of logits, and the hidden states themselves."""
    assert config.vocab_size is not None
    product, frozen = arithmetic.product, arithmetic.frozen
    block = min(positions_per_block("cpu" if arithmetic.on_cpu else "cuda", config.vocab_size), batch.tokens)
    matrix = config.vocab_size * config.width
    states = batch.tokens * config.width
    logits = block * config.vocab_size * (4 if product == 4 else 6)
    # Hidden states, those of the scored positions, their gradient; with bfloat16 products, copies of it and the matrix.
    hidden = states * (RESIDUAL * 2 + product + (product if product < 4 else 0))
    copies = matrix * product * (0 if product == 4 else 1 if frozen else 2)
    return logits + hidden + copies + (0 if frozen else 4 * matrix)


def _segment(part: Part, inside: int, inputs: int, name: str, checkpointed: frozenset[str], working: int) -> Segment:
    """inside: bytes within, inputs: of what a checkpoint keeps instead; without a name it has none."""
    kept = inputs if name in checkpointed else inside + inputs
    return Segment(part, kept, inside + inputs, working)


def _by_part(segments: Iterable[Segment]) -> dict[str, int]:
    parts: dict[str, int] = {"decoder": 0, "cross_attention": 0, "encoder": 0}
    for segment in segments:
        parts[segment.part] += segment.kept
    return parts


def _embedding(config: ModelConfig, batch: Batch, arithmetic: Arithmetic) -> int:
    if arithmetic.frozen:
        return 0
    kept = batch.tokens * (8 + (8 if config.positions == "learned" else 0))
    if config.embedding_norm:
        kept += batch.tokens * (config.width * 4 + 4)
    if config.dropout:
        kept += batch.tokens * config.width * (RESIDUAL if arithmetic.on_cpu else 1)
    return kept


def _self_attention(config: ModelConfig, batch: Batch, arithmetic: Arithmetic) -> int:
    """Within `attend`, but for its input."""
    shape, tokens, length = decoder_attention_shape(config), batch.tokens, batch.length
    kept = Norm(config.norm, config.width).kept(tokens, arithmetic, trained=not arithmetic.frozen)
    rotated = config.positions == "rotary"
    kept += projections_kept(tokens, tokens, length, length, shape, arithmetic, fused=True, rotated=rotated)
    kept += attention_kept(tokens, tokens, length, length, shape, arithmetic)
    if batch.packed:
        heads = config.num_heads // arithmetic.tensor * config.head_size
        # On a CPU the documents' results are put together; elsewhere a mask [N, N] per sequence becomes numbers.
        kept += tokens * arithmetic.product * (heads if arithmetic.on_cpu else length)
    return kept + (tokens * config.width * arithmetic.mask if config.dropout else 0)


def _feed_forward(config: ModelConfig, batch: Batch, arithmetic: Arithmetic, checkpointed: frozenset[str]) -> Segment:
    """`finish`: the feed-forward block. A serial layer's input is kept by its norm, a parallel one's by attention."""
    tokens, product, hidden = batch.tokens, arithmetic.product, config.ffn_size // arithmetic.tensor
    residual = tokens * config.width * RESIDUAL
    inside = Norm(config.norm, config.width).kept(tokens, arithmetic, trained=not arithmetic.frozen)
    # GELU: its input, and its result as the input of `down`; SwiGLU: gate and value, silu(gate), and their product.
    widths = (3 if config.ffn == "swiglu" else 1) + (not arithmetic.frozen)
    inside += tokens * product * hidden * widths
    inside += tokens * config.width * arithmetic.mask if config.dropout else 0
    is_input = config.block == "serial" or "decoder" in checkpointed
    gradients = 2 * residual + tokens * product * hidden * (3 if config.ffn == "swiglu" else 2)
    return _segment("decoder", inside, residual if is_input else 0, "decoder", checkpointed, gradients)


def _cross_attention(
    config: ModelConfig, batch: Batch, arithmetic: Arithmetic, checkpointed: frozenset[str]
) -> Segment:
    """`retrieve`: chunked cross-attention of a RETRO layer."""
    shape, product = decoder_attention_shape(config), arithmetic.product
    queries, keys = batch.queries, batch.neighbor_tokens
    row = batch.num_neighbors * batch.retrieved
    residual = batch.tokens * config.width * RESIDUAL
    inside = Norm(config.norm, config.width).kept(queries, arithmetic)
    # The query blocks are cut out of the sequences.
    inside += queries * config.width * RESIDUAL
    if product < encoded_bytes(config, arithmetic):
        inside += keys * config.encoder_width * product
    sizes = (queries, keys, row, batch.chunk_length, shape, arithmetic)
    inside += projections_kept(*sizes, fused=False, rotated=True) + attention_kept(*sizes)
    if config.dropout:
        inside += queries * config.width * arithmetic.mask
    if config.gate.kind == "learned":
        inside += queries * config.width * product
    kv = 2 * config.kv_heads // arithmetic.tensor * config.head_size
    working = 2 * residual + keys * (config.encoder_width * RESIDUAL + 2 * kv * product)
    whole = _segment("cross_attention", inside, 0, "cross_attention", checkpointed, working)
    if "cross_attention" in checkpointed:
        return replace(whole, kept=residual)
    return whole


def _gate_is_open(config: ModelConfig, number: int) -> bool:
    gate = config.gate
    return gate.kind == "learned" or gate.of_layer(config.cross_attention_layers.index(number)) != 0.0
