"""Configuration of the model: a decoder, and (when `cross_attention_layers` is not empty) its retrieval encoder.

Layer numbers are 1-based, as in the papers. A plain GPT is the same configuration with `cross_attention_layers: []`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from retro.config.model_parts import EncoderConfig, GateConfig, RotaryScaling, checked_layers
from retro.config.model_parts import require as _require
from retro.config.model_parts import require_positive as _require_positive
from retro.config.model_parts import require_rate as _require_rate

__all__ = ["EncoderConfig", "GateConfig", "ModelConfig", "RotaryScaling"]


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only language model, with or without retrieval. Raises ConfigError for impossible combinations."""

    #: Size of the vocabulary; None = taken from the tokenizer (a model cannot be built before it is known).
    vocab_size: int | None = None
    width: int = 256
    num_layers: int = 8
    num_heads: int = 4
    #: Width of one attention head; None = width / num_heads.
    head_width: int | None = None
    #: Key-value heads of decoder self-attention and chunked cross-attention; None = num_heads (no grouping).
    num_kv_heads: int | None = None
    #: Hidden width of the feed-forward block; None = 4 * width, for swiglu 8/3 * width rounded up to 64.
    ffn_width: int | None = None
    #: "gelu" is exact, "gelu_tanh" its approximation (GPT-2).
    ffn: Literal["gelu", "gelu_tanh", "swiglu"] = "swiglu"
    #: "serial": FFW reads what attention has added; "parallel": both read the layer's input (GPT-NeoX, GPT-J).
    block: Literal["serial", "parallel"] = "serial"
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = 1e-5
    #: Biases in the linear layers and in layernorm (rmsnorm and the vocabulary projection never have one).
    bias: bool = False
    #: Biases of the attention's projections and of the feed-forward block; None = `bias`.
    attention_bias: bool | None = None
    ffn_bias: bool | None = None
    #: Positions of decoder self-attention. "learned": a table of `max_positions` vectors, counted from the begin of the
    #: document (GPT-2); the encoder and chunked cross-attention are rotary all the same.
    positions: Literal["rotary", "learned"] = "rotary"
    #: Rows of the table of learned positions: the longest sequence.
    max_positions: int | None = None
    rotary_base: float = 10000.0
    rotary_scaling: RotaryScaling | None = None
    #: Share of each head's width that is rotated, from the first dimension on (rounded down to an even number).
    rotary_fraction: float = 1.0
    #: RMS-normalise queries and keys per head, with a learned scale, before they are rotated.
    qk_norm: bool = False
    #: Mix each key with its predecessor (Olsson et al. 2022, "In-context Learning and Induction Heads").
    smear_keys: bool = False
    tie_embeddings: bool = True
    #: Dropout in the decoder (after the embedding and every block, and on attention weights).
    dropout: float = 0.0
    #: Tokens per chunk, M.
    chunk_length: int = 64
    #: 1-based decoder layers with chunked cross-attention; empty = plain GPT.
    cross_attention_layers: tuple[int, ...] = ()
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    init_std: float = 0.02
    #: RMS-normalise token embeddings (decoder and encoder) before the first layer, without a learned scale.
    embedding_norm: bool = False
    #: "mimetic": queries and keys start equal, the output projection as a transposed value projection, so that a token
    #: attends to its like and copies from there (after Trockman and Kolter 2023, "Mimetic Initialization of
    #: Self-Attention Layers"). Applies to decoder self-attention and chunked cross-attention; needs `embedding_norm`.
    attention_init: Literal["normal", "mimetic"] = "normal"

    def __post_init__(self) -> None:
        _require_positive(self, "vocab_size", "width", "num_layers", "num_heads", "head_width", "num_kv_heads")
        _require_positive(self, "ffn_width", "chunk_length", "max_positions")
        choices = (
            ("ffn", ("gelu", "gelu_tanh", "swiglu")),
            ("block", ("serial", "parallel")),
            ("positions", ("rotary", "learned")),
            ("norm", ("rmsnorm", "layernorm")),
            ("attention_init", ("normal", "mimetic")),
        )
        for name, known in choices:
            value = getattr(self, name)
            _require(value in known, name, f"expected one of {', '.join(known)}, found {value!r}")
        _require_rate(self.dropout, "dropout")
        _require(self.norm_eps > 0, "norm_eps", f"expected a number > 0, found {self.norm_eps}")
        _require(self.init_std > 0, "init_std", f"expected a number > 0, found {self.init_std}")
        _require(self.rotary_base > 1, "rotary_base", f"expected a number > 1, found {self.rotary_base}")
        layers = checked_layers(self.cross_attention_layers, self.num_layers)
        object.__setattr__(self, "cross_attention_layers", layers)
        _require(
            self.attention_init == "normal" or self.embedding_norm,
            "attention_init",
            "'mimetic' needs embedding_norm: true (equal tokens are recognised by their normalised embeddings)",
        )
        if self.head_width is None:
            _require(
                self.width % self.num_heads == 0,
                "num_heads",
                f"{self.num_heads} does not divide width {self.width}; choose another or set head_width",
            )
        _require(
            self.num_heads % self.kv_heads == 0,
            "num_kv_heads",
            f"{self.kv_heads} does not divide num_heads {self.num_heads}",
        )
        _require(
            0.0 < self.rotary_fraction <= 1.0,
            "rotary_fraction",
            f"expected a share in (0, 1], found {self.rotary_fraction}",
        )
        _require(
            self.rotary_width >= 2,
            "rotary_fraction",
            f"{self.rotary_fraction} of head width {self.head_size} rotates nothing; expected at least 2 dimensions",
        )
        self._check_positions()
        if self.is_retro:
            self._check_encoder()
        self._check_gate()

    def _check_positions(self) -> None:
        learned = self.positions == "learned"
        _require(
            learned == (self.max_positions is not None),
            "max_positions",
            "positions: learned needs the size of its table" if learned else "is read with positions: learned only",
        )
        _require(
            not learned or self.rotary_scaling is None,
            "rotary_scaling",
            "is read with positions: rotary only (it concerns decoder self-attention); remove it",
        )

    def _check_gate(self) -> None:
        if self.is_retro:
            value, layers = self.gate.value, len(self.cross_attention_layers)
            fits = not isinstance(value, tuple) or len(value) == layers
            _require(fits, "gate.value", f"expected one number, or {layers}, one per RETRO layer, found {value}")
        else:
            _require(self.gate == GateConfig(), "gate", "a plain GPT (cross_attention_layers: []) has none; remove it")

    def _check_encoder(self) -> None:
        width, encoder = self.encoder_width, self.encoder
        if encoder.num_heads is None:
            fits = width == self.width or width % self.head_size == 0
            _require(
                fits,
                "encoder.width",
                f"{width} is not a multiple of the head width {self.head_size}; set encoder.num_heads",
            )
        else:
            _require(
                width % encoder.num_heads == 0,
                "encoder.num_heads",
                f"{encoder.num_heads} does not divide the encoder's width {width}",
            )
        _require(
            self.rotated_width(self.encoder_head_size) >= 2,
            "encoder.num_heads",
            f"head width {self.encoder_head_size} leaves no dimension to rotate",
        )

    @property
    def is_retro(self) -> bool:
        """Whether the model has retrieval parameters at all."""
        return bool(self.cross_attention_layers)

    @property
    def attention_has_bias(self) -> bool:
        """Whether the projections of attention, cross-attention included, have biases."""
        return self.bias if self.attention_bias is None else self.attention_bias

    @property
    def ffn_has_bias(self) -> bool:
        """Whether the feed-forward blocks have biases."""
        return self.bias if self.ffn_bias is None else self.ffn_bias

    @property
    def head_size(self) -> int:
        """Width of one decoder head, E."""
        return self.head_width if self.head_width is not None else self.width // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Key-value heads of the decoder."""
        return self.num_kv_heads if self.num_kv_heads is not None else self.num_heads

    def rotated_width(self, head_size: int) -> int:
        """How many leading dimensions of a head of `head_size` are rotated."""
        return int(head_size * self.rotary_fraction) // 2 * 2

    @property
    def rotary_width(self) -> int:
        """Rotated dimensions of a decoder head."""
        return self.rotated_width(self.head_size)

    def default_ffn_width(self, width: int) -> int:
        """The rule of `ffn_width: None`, for a given model width."""
        return 64 * math.ceil(8 * width / 3 / 64) if self.ffn == "swiglu" else 4 * width

    @property
    def ffn_size(self) -> int:
        """Hidden width of the decoder's feed-forward block."""
        return self.ffn_width if self.ffn_width is not None else self.default_ffn_width(self.width)

    @property
    def encoder_width(self) -> int:
        return self.encoder.width if self.encoder.width is not None else self.width

    @property
    def encoder_heads(self) -> int:
        if self.encoder.num_heads is not None:
            return self.encoder.num_heads
        return self.num_heads if self.encoder_width == self.width else self.encoder_width // self.head_size

    @property
    def encoder_head_size(self) -> int:
        if self.encoder.num_heads is not None:
            return self.encoder_width // self.encoder.num_heads
        return self.head_size

    @property
    def encoder_ffn_size(self) -> int:
        if self.encoder.ffn_width is not None:
            return self.encoder.ffn_width
        return self.ffn_size if self.encoder_width == self.width else self.default_ffn_width(self.encoder_width)
