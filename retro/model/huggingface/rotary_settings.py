"""Rotary positions in a config.json: `rope_theta` and `rope_scaling`, or `rope_parameters` from transformers 5 on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from retro.config.errors import ConfigError
from retro.config.model import ModelConfig
from retro.config.model_parts import RotaryScaling
from retro.model.huggingface.settings import Settings

_KINDS = {"default": "none", "none": "none", "linear": "linear", "llama3": "llama3"}


@dataclass(frozen=True)
class RotarySettings:
    """base: theta; fraction: share of a head that is rotated; scaling: None = none."""

    base: float
    fraction: float
    scaling: RotaryScaling | None


def read_rotary(settings: Settings, base_name: str, fraction_name: str, fraction: float) -> RotarySettings:
    """base_name, fraction_name: the older settings at the top level; fraction: what absence of both means.

    Raises ArtifactMismatchError for another kind of scaling (dynamic, yarn, longrope, ...) and for settings of it that
    are not known.
    """
    base = settings.number(base_name, 10000.0)
    fraction = settings.number(fraction_name, fraction)
    positions = settings.optional_integer("max_position_embeddings")
    original = settings.optional_integer("original_max_position_embeddings") or positions
    scaling = settings.mapping("rope_scaling") or settings.mapping("rope_parameters")
    settings.mapping("rope_parameters")  # transformers reads it only if there is no rope_scaling
    if scaling is None:
        return RotarySettings(base, fraction, None)
    base = scaling.number("rope_theta", base)
    fraction = scaling.number("partial_rotary_factor", fraction)
    kind = scaling.choice("type", _KINDS, "default")
    kind = scaling.choice("rope_type", _KINDS, kind if kind != "none" else "default")
    found: RotaryScaling | None = None
    try:
        if kind == "llama3":
            found = RotaryScaling(
                kind="llama3",
                factor=scaling.number("factor", 1.0),
                low_frequency_factor=scaling.number("low_freq_factor", 1.0),
                high_frequency_factor=scaling.number("high_freq_factor", 4.0),
                original_positions=scaling.integer("original_max_position_embeddings", original),
            )
        elif kind != "none":
            found = RotaryScaling(kind=cast(Literal["linear"], kind), factor=scaling.number("factor", 1.0))
    except ConfigError as error:
        raise settings.error("rope_scaling", str(error), "a scaling that this model can compute") from None
    # Read by no kind that is supported, and stored with all of them.
    scaling.check_rest(inert=("original_max_position_embeddings",))
    return RotarySettings(base, fraction, found)


def write_scaling(config: ModelConfig) -> dict[str, Any] | None:
    """`rope_scaling` as transformers 4 and 5 read it."""
    scaling = config.rotary_scaling
    if scaling is None:
        return None
    if scaling.kind == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_frequency_factor,
        "high_freq_factor": scaling.high_frequency_factor,
        "original_max_position_embeddings": scaling.original_positions,
    }
