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


def common_obstacles(config: ModelConfig, **expected: Any) -> list[str]:
    """Fields that differ from `expected` or that no architecture here has."""
    wanted = {"qk_norm": False, "smear_keys": False, "embedding_norm": False, **expected}
    return [
        f"{name}: {getattr(config, name)}" for name, value in wanted.items() if not _is(getattr(config, name), value)
    ]


def _is(found: Any, wanted: Any) -> bool:
    return found in wanted if isinstance(wanted, tuple) else found == wanted
