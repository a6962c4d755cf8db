"""Configuration of `retro export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from retro.config.errors import ConfigError


@dataclass(frozen=True)
class ExportConfig:
    """Write a trained model for other programs.

    checkpoint: run folder (its newest checkpoint), checkpoint folder or exported model; output: the folder to make;
    format: "huggingface" (the decoder, which transformers opens; retrieval parameters have no place there) or "retro"
    (the whole model: model.safetensors and config.json, what load_pretrained and retrofit.base read). huggingface only:
    dtype of the weights; max_positions: longest sequence stated in config.json, None = the model's own limit, or the
    length that it was trained with; release: whose tokenizer is written along, None = that of the checkpoint's run.
    """

    checkpoint: str
    output: str
    format: Literal["huggingface", "retro"] = "huggingface"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_positions: int | None = None
    release: str | None = None

    def __post_init__(self) -> None:
        for name in ("checkpoint", "output"):
            if getattr(self, name) == "":
                raise ConfigError(f"{name}: expected a path, found an empty text")
        if self.max_positions is not None and self.max_positions < 1:
            raise ConfigError(f"max_positions: expected 1 or more, found {self.max_positions}")
        unread = {"dtype": "float32", "max_positions": None, "release": None}
        for name, default in unread.items():
            if self.format == "retro" and getattr(self, name) != default:
                raise ConfigError(f"{name}: is not read with format 'retro'; remove it")
