"""The language model: a decoder that also runs as a plain GPT, and the encoder of retrieved neighbors."""

from retro.model.loss import ModelOutput
from retro.model.retro import RetroModel, count_parameters

__all__ = ["ModelOutput", "RetroModel", "count_parameters"]
