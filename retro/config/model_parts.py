"""Parts of the model's configuration: encoder of neighbors, gate of cross-attention, scaled rotary positions."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from retro.config.errors import ConfigError


def require(condition: bool, name: str, message: str) -> None:
    """Raise ConfigError `name: message` unless `condition`."""
    if not condition:
        raise ConfigError(f"{name}: {message}")


def require_positive(config: object, *names: str) -> None:
    """Raise ConfigError unless each field is None or at least 1."""
    for name in names:
        value = getattr(config, name)
        if value is not None:
            require(value >= 1, name, f"expected a whole number >= 1, found {value}")


def require_rate(value: float, name: str) -> None:
    """Raise ConfigError unless `value` is a probability below 1."""
    require(0.0 <= value < 1.0, name, f"expected a probability in [0, 1), found {value}")


def checked_layers(layers: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    """Layer numbers as a tuple; they must be ascending, distinct and within 1..num_layers."""
    layers, name = tuple(layers), "cross_attention_layers"
    for layer in layers:
        require(
            1 <= layer <= num_layers,
            name,
            f"layer {layer} does not exist, expected 1-based numbers within 1..{num_layers}",
        )
    require(list(layers) == sorted(set(layers)), name, f"expected ascending distinct numbers, found {list(layers)}")
    return layers


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder of retrieved neighbors (docs/concepts.md): bidirectional, conditioned on the retrieving chunk.

    Fields left at None follow the decoder. Attention in the encoder always has as many key-value heads as query heads.
    """

    num_layers: int = 2
    #: Width of the encoder; None = the decoder's.
    width: int | None = None
    #: Attention heads; None = as many heads of the decoder's head width as fill `width`.
    num_heads: int | None = None
    #: Hidden width of the feed-forward block; None = the decoder's at equal width, otherwise the decoder's rule.
    ffn_width: int | None = None
    #: 1-based encoder layers whose tokens attend to the activations of the retrieving chunk; empty = an encoder that
    #: does not see the chunk (identical neighbors of a batch are then encoded once).
    cross_attention_layers: tuple[int, ...] = (1,)
    #: Dropout in the encoder (after the embedding and every block, and on attention weights).
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "num_layers", "width", "num_heads", "ffn_width")
        require_rate(self.dropout, "dropout")
        layers = checked_layers(self.cross_attention_layers, self.num_layers)
        object.__setattr__(self, "cross_attention_layers", layers)


@dataclass(frozen=True)
class GateConfig:
    """Factor on the output of chunked cross-attention, per RETRO layer (Wang et al. 2024, InstructRetro, figure 4).

    kind "fixed": a constant; "learned": a parameter that starts at `value`. value: for all RETRO layers, or one for
    each of `cross_attention_layers` in order. 0 leaves the decoder's output bit for bit that of the GPT: with "learned"
    a model grown from a pretrained GPT starts as exactly that GPT (as in Alayrac et al. 2022, Flamingo, section 3.1.2,
    without the tanh).
    """

    kind: Literal["fixed", "learned"] = "fixed"
    value: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        require(self.kind in ("fixed", "learned"), "kind", f"expected fixed or learned, found {self.kind!r}")
        if isinstance(self.value, (list, tuple)):
            object.__setattr__(self, "value", tuple(float(v) for v in self.value))
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        require(all(math.isfinite(v) for v in values), "value", f"expected finite numbers, found {self.value}")

    def of_layer(self, index: int) -> float:
        """Value of the `index`-th RETRO layer (0-based)."""
        return self.value[index] if isinstance(self.value, tuple) else float(self.value)


@dataclass(frozen=True)
class RotaryScaling:
    """Rotary frequencies for contexts longer than those of pretraining.

    "linear": positions divided by `factor` (Chen et al. 2023). "llama3": frequencies whose wavelength is above
    original_positions / low_frequency_factor are divided by `factor`, those below original_positions /
    high_frequency_factor kept, those between interpolated (Llama 3.1); these three are read with "llama3" only.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 8192

    def __post_init__(self) -> None:
        require(self.kind in ("linear", "llama3"), "kind", f"expected linear or llama3, found {self.kind!r}")
        require(1 <= self.factor < math.inf, "factor", f"expected a number >= 1, found {self.factor}")
        require_positive(self, "original_positions")
        require(
            0 < self.low_frequency_factor < self.high_frequency_factor,
            "high_frequency_factor",
            f"expected above low_frequency_factor {self.low_frequency_factor}, found {self.high_frequency_factor}",
        )
        for entry in dataclasses.fields(self)[2:]:
            unread = self.kind == "linear" and getattr(self, entry.name) != entry.default
            require(not unread, entry.name, "is read with kind: llama3 only; remove it")
