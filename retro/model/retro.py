"""RetroModel: a decoder-only language model with optional retrieval. GPT is the same class without RETRO layers."""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro.config.errors import ConfigError
from retro.config.model import ModelConfig
from retro.model.decoder import DecoderLayer, Surroundings
from retro.model.encoder import Encoder
from retro.model.initialise import initialise
from retro.model.inputs import check_inputs
from retro.model.loss import ModelOutput, token_loss
from retro.model.retrieval_plan import RetrievalPlan, plan_retrieval, plan_static_retrieval
from retro.nn.documents import documents_of
from retro.nn.linear import Embedding, Linear
from retro.nn.norm import build_norm
from retro.nn.rotary import RotaryTable, rotary_table
from retro.nn.shards import local_part


class RetroModel(nn.Module):
    """The decoder with chunked cross-attention over encoded neighbors (Borgeaud et al. 2022; docs/concepts.md).

    `gate` (default 1.0) multiplies the output of chunked cross-attention in all layers, besides the gates of the
    configuration; 0.0 leaves out retrieval altogether, bit for bit as if no neighbors were given.

    `checkpointed`: parts whose activations are computed again in the backward pass instead of kept ("decoder",
    "cross_attention", "encoder"). `static_shapes`: shapes inside the model depend on the shapes of its input alone, as
    torch.compile wants it; nothing is left out because it is masked. Both change speed and memory, and last bits.
    `lockstep`: which layers run does not depend on the content of a batch, as layers want it that several processes
    gather together; one without any neighbor is then encoded like the others (and adds exact zeros), and parameters
    that no batch can use get no gradient instead of zeros.

    Parameters are drawn by `draw_weights` at construction, but for a model on the meta device.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        if config.vocab_size is None:
            raise ConfigError("model.vocab_size: not set; a model is built with the size of its tokenizer's vocabulary")
        self.config = config
        self.gate = 1.0
        self.checkpointed: frozenset[str] = frozenset()
        self.static_shapes = False
        self.lockstep = False
        self.embedding = Embedding(config.vocab_size, config.width)
        self.positions = None if config.max_positions is None else Embedding(config.max_positions, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(DecoderLayer(config, number) for number in range(1, config.num_layers + 1))
        self.norm = build_norm(config.norm, config.width, config.norm_eps, config.bias)
        self.head = None if config.tie_embeddings else Linear(config.width, config.vocab_size, bias=False)
        self.encoder = Encoder(config) if config.is_retro else None
        if not self.embedding.weight.is_meta:
            self.draw_weights()

    def draw_weights(self) -> None:
        """Set all parameters in place, of any device and sharding, at random.

        From a seed that is itself drawn from torch's default generator, so `torch.manual_seed(s)` before fixes them; a
        GPT and a RETRO drawn after the same seed share every parameter that both have.
        """
        initialise(self, self.config, seed=int(torch.randint(2**62, (), device="cpu")))

    @property
    def retrieval_is_off(self) -> bool:
        """Whether neighbors change nothing: a plain GPT, or all gates are fixed to 0."""
        cross = [layer.cross_attention for layer in self.decoder_layers]
        return self.gate == 0.0 or all(layer is None or layer.is_off for layer in cross)

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        """The layers, with their type."""
        return cast(list[DecoderLayer], list(self.layers))

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
        document_starts_BN: Tensor | None = None,
        chunk_ends_BL: Tensor | None = None,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> ModelOutput:
        """Logits, or with `targets_BN` the loss.

        tokens_BN int64 [B, N].
        neighbors_BLKR int64 [B, L, K, R], neighbor_mask_BLKR bool of that shape (None = all real): neighbors of chunk
            u in row u; fewer rows than chunks = none for the rest. None = no retrieval. What a masked token holds is
            irrelevant.
        targets_BN int64 [B, N], loss_mask_BN bool [B, N] (None = all scored): targets are read where scored only.
        first_chunk_length: 1..M, default ((N - 1) mod M) + 1: the last token always ends a chunk (docs/concepts.md).
        document_starts_BN int64 [B, N]: position of the first token of each position's document; self-attention and
            the service of neighbors end with the document, and learned positions count from its begin. None = one
            document per sequence.
        chunk_ends_BL int64 [B, L]: position of the last token of the chunk whose neighbors row l holds, ascending, -1 =
            an unused row. A row serves the up to M positions from there on, until the next chunk's end or the end of
            the document; its chunk is the up to M tokens of the document that end there. Instead of
            first_chunk_length; not read without neighbors.
        Raises ValueError for shapes and lengths that do not fit, and when neighbors are given to a plain GPT.
        """
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction: expected 'mean' or 'sum', found {reduction!r}")
        hidden = self.hidden_states(
            tokens_BN,
            neighbors_BLKR,
            neighbor_mask_BLKR,
            first_chunk_length=first_chunk_length,
            document_starts_BN=document_starts_BN,
            chunk_ends_BL=chunk_ends_BL,
        )
        if targets_BN is None:
            return ModelOutput(logits=F.linear(hidden, self.output_weight))
        return token_loss(hidden, self.output_weight, targets_BN, loss_mask_BN, reduction, self.static_shapes)

    def hidden_states(
        self,
        tokens_BN: Tensor,
        neighbors_BLKR: Tensor | None = None,
        neighbor_mask_BLKR: Tensor | None = None,
        *,
        first_chunk_length: int | None = None,
        document_starts_BN: Tensor | None = None,
        chunk_ends_BL: Tensor | None = None,
    ) -> Tensor:
        """The normed final states [B, N, D] that the vocabulary projection reads. Arguments as in `forward`."""
        first = check_inputs(
            self.config,
            tokens_BN,
            neighbors_BLKR,
            neighbor_mask_BLKR,
            first_chunk_length,
            document_starts_BN,
            chunk_ends_BL,
        )
        plan = self._plan(tokens_BN, neighbors_BLKR, neighbor_mask_BLKR, first, document_starts_BN, chunk_ends_BL)
        documents = None if document_starts_BN is None else documents_of(document_starts_BN)
        x = self.embed_sequence(tokens_BN, None if documents is None else documents.positions)
        around = Surroundings(
            rotary=self.self_rotary(tokens_BN.shape[1], x),
            documents=documents,
            checkpointed=self.checkpointed,
            plan=plan,
            cross_rotary=None if plan is None else self.cross_rotary(plan.longest, x),
            gate=self.gate,
            encode=self.encode,
        )
        x = self.dropout(x)
        encoded: Tensor | None = None
        for layer in self.layers:
            x, made = layer(x, encoded, around)
            encoded = made if encoded is None else encoded
        if neighbors_BLKR is not None and self.gate != 0.0 and torch.is_grad_enabled() and not self.lockstep:
            x = self._with_unused_parameters(x, used=encoded is not None)
        return self.norm(x)

    def embed_sequence(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Embeddings [B, N, D] of the decoder's input. tokens int64 [B, N]; positions int64 [B, N], read where they are
        learned, None = 0..N-1, and must be within the table. Raises ValueError for a sequence longer than that without
        them."""
        embedded = self.embed(tokens)
        if self.positions is None:
            return embedded
        length, most = tokens.shape[1], self.positions.num_embeddings
        if positions is not None:
            return embedded + self.positions(positions)
        if length > most:
            raise ValueError(f"tokens_BN: expected at most max_positions {most} tokens per sequence, found {length}")
        return embedded + self.positions.weight[:length]

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids int64 [...] -> [..., D], without positions."""
        embedded = F.embedding(tokens, self.embedding.weight)
        if self.config.embedding_norm:
            embedded = F.rms_norm(embedded, (self.config.width,), eps=self.config.norm_eps)
        return embedded

    def encode(self, plan: RetrievalPlan, chunks: Tensor) -> Tensor:
        """Encoded neighbors [A, R, D'] of a plan. chunks [rows, M, D]: residual stream of the retrieving chunks after
        the self-attention of the first RETRO layer."""
        assert self.encoder is not None
        embedded = self.embed(plan.tokens)
        positions = max(self.config.chunk_length, plan.longest)
        rotary = self._rotary(positions, self.config.rotated_width(self.config.encoder_head_size), embedded)
        return self.encoder(
            embedded,
            plan.token_mask,
            chunks,
            rotary,
            plan.num_neighbors,
            plan.neighbor_slots,
            plan.chunk_mask,
            self.checkpointed,
        )

    def self_rotary(self, length: int, like: Tensor) -> RotaryTable | None:
        """Positions 0..length-1 of decoder self-attention; None where they are learned."""
        if self.positions is not None:
            return None
        config = self.config
        return rotary_table(
            length, config.rotary_width, config.rotary_base, like.device, like.dtype, config.rotary_scaling
        )

    def cross_rotary(self, retrieved_length: int, like: Tensor) -> RotaryTable:
        """Positions of chunked cross-attention, of neighbors of R tokens and of query blocks."""
        return self._rotary(max(2 * self.config.chunk_length - 1, retrieved_length), self.config.rotary_width, like)

    def _rotary(self, positions: int, width: int, like: Tensor) -> RotaryTable:
        return rotary_table(positions, width, self.config.rotary_base, like.device, like.dtype)

    def _plan(
        self,
        tokens_BN: Tensor,
        neighbors_BLKR: Tensor | None,
        neighbor_mask_BLKR: Tensor | None,
        first_chunk_length: int,
        document_starts_BN: Tensor | None,
        chunk_ends_BL: Tensor | None,
    ) -> RetrievalPlan | None:
        if neighbors_BLKR is None or self.retrieval_is_off:
            return None
        plan = None
        if not self.static_shapes:
            plan = plan_retrieval(
                neighbors_BLKR,
                neighbor_mask_BLKR,
                length=tokens_BN.shape[1],
                chunk_length=self.config.chunk_length,
                first_chunk_length=first_chunk_length,
                chunk_ends_BL=chunk_ends_BL,
                document_starts_BN=document_starts_BN,
                merge_equal=not self.config.encoder.cross_attention_layers,
            )
        if plan is None and (self.static_shapes or self.lockstep):
            plan = plan_static_retrieval(
                neighbors_BLKR,
                neighbor_mask_BLKR,
                length=tokens_BN.shape[1],
                chunk_length=self.config.chunk_length,
                first_chunk_length=first_chunk_length,
                chunk_ends_BL=chunk_ends_BL,
                document_starts_BN=document_starts_BN,
            )
        return plan

    def _with_unused_parameters(self, x: Tensor, used: bool) -> Tensor:
        """x plus an exact 0 that depends on the retrieval parameters that this batch did not use.

        A batch without any neighbor gives them zero gradients, like every other batch, instead of none: distributed
        training waits for a gradient of each parameter, and an optimizer treats "none" differently from zero.
        """
        off = {
            f"layers.{i}.cross_attention."
            for i, layer in enumerate(self.decoder_layers)
            if layer.cross_attention is not None and layer.cross_attention.is_off
        }
        unused = [
            local_part(p).sum()
            for name, p in self.named_parameters()
            if p.requires_grad and is_retrieval_parameter(name) and (not used or name.startswith(tuple(off)))
        ]
        return x + torch.stack(unused).sum() * 0.0 if unused else x


def is_retrieval_parameter(name: str) -> bool:
    """Whether a RETRO has the parameter (named as in the state dict) and the GPT of the same decoder has not."""
    return name.startswith("encoder.") or ".cross_attention." in name


def count_parameters(model: nn.Module) -> int:
    """Number of scalars, frozen ones too; tied weights count once. Works on the meta device too."""
    return sum(p.numel() for p in model.parameters())
