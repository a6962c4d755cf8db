"""What the reader and the writer ask of an architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from retro.config.model import ModelConfig
from retro.model.huggingface.mapping import Entry
from retro.model.huggingface.settings import Settings


@dataclass(frozen=True)
class Architecture:
    """One `model_type` of transformers.

    class_name: of its causal language model; prefix: of the names of all tensors but the vocabulary projection (left
    out where the model was saved without its head); head_names: the vocabulary projection, as it is written first;
    buffers: regular expressions of stored tensors that are no weights;
    read: config.json -> configuration of our decoder, raises ArtifactMismatchError naming what is not supported;
    write: the inverse, for `positions` tokens at most; entries: tables of the weights for a configuration, without the
    vocabulary projection; obstacles: fields of a configuration, with their values, that it has no form for.
    """

    model_type: str
    class_name: str
    prefix: str
    head_names: tuple[str, ...]
    buffers: tuple[str, ...]
    read: Callable[[Settings], ModelConfig]
    write: Callable[[ModelConfig, int], dict[str, Any]]
    entries: Callable[[ModelConfig], list[Entry]]
    obstacles: Callable[[ModelConfig], list[str]]


#: Properties of a configuration that follow from a field -> the field.
_FIELD_OF = {"head_size": "head_width", "kv_heads": "num_kv_heads", "rotary_width": "rotary_fraction"}


def common_obstacles(config: ModelConfig, **expected: Any) -> list[str]:
    """Fields that differ from `expected` (a tuple: from all of it) or that no architecture here has."""
    found = []
    for name, wanted in {"qk_norm": False, "smear_keys": False, "embedding_norm": False, **expected}.items():
        value = getattr(config, name)
        if value not in wanted if isinstance(wanted, tuple) else value != wanted:
            field = _FIELD_OF.get(name, name)
            found.append(f"{field}: {str(getattr(config, field)).lower()}")
    return found
