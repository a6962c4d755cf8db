"""RetroModel: a decoder-only language model with optional retrieval. GPT is the same class without RETRO layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro.config.errors import ConfigError
from retro.config.model import ModelConfig
from retro.model.decoder import DecoderLayer, Retrieval
from retro.model.encoder import Encoder
from retro.model.initialise import initialise
from retro.model.retrieval_plan import RetrievalPlan, plan_retrieval
from retro.nn.chunked_cross_attention import count_chunks, cut_chunks
from retro.nn.cross_entropy import linear_cross_entropy
from retro.nn.linear import Embedding, Linear
from retro.nn.norm import build_norm
from retro.nn.rotary import RotaryTable, rotary_table


@dataclass(frozen=True)
class ModelOutput:
    """`logits` when no targets were given; the loss fields when they were."""

    #: float [B, N, V].
    logits: Tensor | None = None
    #: Scalar: mean (or sum, by `reduction`) over the scored tokens, nats. 0 if none is scored.
    loss: Tensor | None = None
    #: float32 [B, N], nats, 0 where not scored; not differentiable.
    token_losses_BN: Tensor | None = None
    #: Scalar sum over the scored tokens, nats; differentiable.
    loss_sum: Tensor | None = None
    #: int64 scalar.
    num_scored: Tensor | None = None


class RetroModel(nn.Module):
    """The decoder with chunked cross-attention over encoded neighbors (Borgeaud et al. 2022; docs/concepts.md).

    `gate` (default 1.0) multiplies the output of chunked cross-attention; 0.0 leaves out retrieval altogether, bit
    for bit as if no neighbors were given (InstructRetro's gate).

    Parameters are drawn from a seed that is itself drawn from torch's default generator, so `torch.manual_seed(s)`
    before construction fixes them; a GPT and a RETRO made after the same seed share every parameter that both have.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        if config.vocab_size is None:
            raise ConfigError("model.vocab_size: not set; a model is built with the size of its tokenizer's vocabulary")
        self.config = config
        self.gate = 1.0
        self.embedding = Embedding(config.vocab_size, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            DecoderLayer(config, retro=number in config.cross_attention_layers)
            for number in range(1, config.num_layers + 1)
        )
        self.norm = build_norm(config.norm, config.width, config.norm_eps, config.bias)
        self.head = None if config.tie_embeddings else Linear(config.width, config.vocab_size, bias=False)
        self.encoder = Encoder(config) if config.is_retro else None
        if not self.embedding.weight.is_meta:
            initialise(self, config, seed=int(torch.randint(2**62, (), device="cpu")))

    @property
    def output_weight(self) -> Tensor:
        """The vocabulary projection [V, D]."""
        return self.embedding.weight if self.head is None else self.head.weight

    def forward(
        self,
        tokens_BN: Tensor,
        neighbors_BLKR: Tensor | None = None,
        neighbor_mask_BLKR: Tensor | None = None,
        *,
        targets_BN: Tensor | None = None,
        loss_mask_BN: Tensor | None = None,
        first_chunk_length: int | None = None,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> ModelOutput:
        """Logits, or with `targets_BN` the loss.

        tokens_BN int64 [B, N].
        neighbors_BLKR int64 [B, L, K, R], neighbor_mask_BLKR bool of that shape (None = all real): neighbors of chunk
            u in row u; fewer rows than chunks = none for the rest. None = no retrieval. What a masked token holds is
            irrelevant.
        targets_BN int64 [B, N], loss_mask_BN bool [B, N] (None = all scored): targets are read where scored only.
        first_chunk_length: 1..M, default ((N - 1) mod M) + 1: the last token always ends a chunk (docs/concepts.md).
        Raises ValueError for shapes and lengths that do not fit, and when neighbors are given to a plain GPT.
        """
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction: expected 'mean' or 'sum', found {reduction!r}")
        hidden = self.hidden_states(
            tokens_BN, neighbors_BLKR, neighbor_mask_BLKR, first_chunk_length=first_chunk_length
        )
        if targets_BN is None:
            return ModelOutput(logits=F.linear(hidden, self.output_weight))
        return token_loss(hidden, self.output_weight, targets_BN, loss_mask_BN, reduction)

    def hidden_states(
        self,
        tokens_BN: Tensor,
        neighbors_BLKR: Tensor | None = None,
        neighbor_mask_BLKR: Tensor | None = None,
        *,
        first_chunk_length: int | None = None,
    ) -> Tensor:
        """The normed final states [B, N, D] that the vocabulary projection reads. Arguments as in `forward`."""
        length = tokens_BN.shape[1]
        first = self._first_chunk_length(length, first_chunk_length)
        plan = self._plan(tokens_BN, neighbors_BLKR, neighbor_mask_BLKR, first)
        embedded = self._embed(tokens_BN)
        positions = length if plan is None else max(length, 2 * self.config.chunk_length - 1, plan.tokens.shape[1])
        rotary = self._rotary(positions, self.config.rotary_width, embedded)
        retrieval = None if plan is None else self._retrieval(plan, embedded, rotary)
        x = self.dropout(embedded)
        encoded: Tensor | None = None
        for layer in self.layers:
            x, encoded = layer(x, rotary, retrieval, encoded)
        if plan is None and neighbors_BLKR is not None and self.gate != 0.0 and torch.is_grad_enabled():
            x = x + self._zero_of_retrieval_parameters()
        return self.norm(x)

    def _embed(self, tokens: Tensor) -> Tensor:
        """Token ids int64 [...] -> [..., D]."""
        embedded = F.embedding(tokens, self.embedding.weight)
        if self.config.embedding_norm:
            embedded = F.rms_norm(embedded, (self.config.width,), eps=self.config.norm_eps)
        return embedded

    def _first_chunk_length(self, length: int, given: int | None) -> int:
        chunk = self.config.chunk_length
        if length < 1:
            raise ValueError("tokens_BN: expected at least one token per sequence, found none")
        if given is None:
            return (length - 1) % chunk + 1
        if not 1 <= given <= chunk:
            raise ValueError(f"first_chunk_length: expected 1..{chunk} (the chunk length), found {given}")
        return given

    def _plan(
        self, tokens_BN: Tensor, neighbors_BLKR: Tensor | None, neighbor_mask_BLKR: Tensor | None, first: int
    ) -> RetrievalPlan | None:
        if neighbors_BLKR is None:
            if neighbor_mask_BLKR is not None:
                raise ValueError("neighbor_mask_BLKR: given without neighbors_BLKR")
            return None
        if self.encoder is None:
            raise ValueError("neighbors_BLKR: this model is a plain GPT (cross_attention_layers is empty); pass None")
        length, chunk = tokens_BN.shape[1], self.config.chunk_length
        most = count_chunks(length, chunk, first)
        shape = tuple(neighbors_BLKR.shape)
        if len(shape) != 4 or shape[0] != tokens_BN.shape[0] or shape[1] > most:
            raise ValueError(
                f"neighbors_BLKR: expected [{tokens_BN.shape[0]}, at most {most}, K, R] for {length} tokens in "
                f"chunks of {chunk} (first: {first}), found {list(shape)}"
            )
        if neighbor_mask_BLKR is not None and tuple(neighbor_mask_BLKR.shape) != shape:
            raise ValueError(
                f"neighbor_mask_BLKR: expected the shape of neighbors_BLKR {list(shape)}, "
                f"found {list(neighbor_mask_BLKR.shape)}"
            )
        if self.gate == 0.0:
            return None
        return plan_retrieval(
            neighbors_BLKR, neighbor_mask_BLKR, length=length, chunk_length=chunk, first_chunk_length=first
        )

    def _retrieval(self, plan: RetrievalPlan, embedded: Tensor, rotary: RotaryTable) -> Retrieval:
        config, encoder = self.config, self.encoder
        assert encoder is not None
        encoder_width = config.rotated_width(config.encoder_head_size)
        if encoder_width != config.rotary_width:
            positions = max(config.chunk_length, plan.tokens.shape[1])
            rotary = self._rotary(positions, encoder_width, embedded)

        def encode(x: Tensor) -> Tensor:
            chunks = cut_chunks(x, plan.num_chunks, config.chunk_length, plan.first_chunk_length)
            if plan.chunk_rows is not None:
                chunks = chunks.index_select(0, plan.chunk_rows)
            return encoder(
                self._embed(plan.tokens),
                plan.token_mask,
                chunks,
                rotary,
                plan.num_neighbors,
                plan.neighbor_slots,
                plan.chunk_mask,
            )

        return Retrieval(plan, encode, self.gate)

    def _rotary(self, positions: int, width: int, like: Tensor) -> RotaryTable:
        return rotary_table(positions, width, self.config.rotary_base, like.device, like.dtype)

    def _zero_of_retrieval_parameters(self) -> Tensor:
        """An exact 0 that depends on all retrieval parameters.

        A batch without any neighbor gives them zero gradients, like every other batch, instead of none: distributed
        training waits for a gradient of each parameter, and an optimizer treats "none" differently from zero.
        """
        parameters = [p for name, p in self.named_parameters() if is_retrieval_parameter(name)]
        return torch.stack([p.sum() for p in parameters]).sum() * 0.0


def is_retrieval_parameter(name: str) -> bool:
    """Whether a RETRO has the parameter (named as in the state dict) and the GPT of the same decoder has not."""
    return name.startswith("encoder.") or ".cross_attention." in name


def count_parameters(model: nn.Module) -> int:
    """Number of trainable scalars; tied weights count once. Works on the meta device too."""
    return sum(p.numel() for p in model.parameters())


@torch.compiler.disable
def token_loss(
    hidden: Tensor,
    weight: Tensor,
    targets_BN: Tensor,
    loss_mask_BN: Tensor | None,
    reduction: Literal["mean", "sum"],
) -> ModelOutput:
    """Cross-entropy of the scored positions; the others do not go through the vocabulary projection at all."""
    if targets_BN.shape != hidden.shape[:2]:
        raise ValueError(f"targets_BN: expected shape {list(hidden.shape[:2])}, found {list(targets_BN.shape)}")
    states, targets = hidden.flatten(0, 1), targets_BN.flatten()
    scored = None
    if loss_mask_BN is not None:
        if loss_mask_BN.shape != targets_BN.shape:
            raise ValueError(f"loss_mask_BN: expected shape {list(targets_BN.shape)}, found {list(loss_mask_BN.shape)}")
        scored = loss_mask_BN.flatten().nonzero().squeeze(1)
        if scored.numel() == targets.numel():
            scored = None
        else:
            states, targets = states.index_select(0, scored), targets.index_select(0, scored)
    loss_sum, losses = linear_cross_entropy(states, weight, targets)
    num_scored = targets.numel()
    if scored is not None:
        losses = losses.new_zeros(targets_BN.numel()).index_copy(0, scored, losses)
    return ModelOutput(
        loss=loss_sum / max(num_scored, 1) if reduction == "mean" else loss_sum,
        token_losses_BN=losses.view(targets_BN.shape),
        loss_sum=loss_sum,
        num_scored=torch.tensor(num_scored, device=hidden.device),
    )
