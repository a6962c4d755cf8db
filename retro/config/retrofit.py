"""Retrieval for a pretrained language model (RETROfitting, Borgeaud et al. 2022, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass, field

from retro.config.model_parts import EncoderConfig, GateConfig, require, require_positive, require_rate


@dataclass(frozen=True)
class RetrofitConfig:
    """What is added to a base model; its decoder is taken over as it is, so nothing of it is named here.

    base: run folder (its newest checkpoint), checkpoint folder, exported model, or Hugging Face folder of GPT-2, Llama
    or GPT-NeoX; a model without retrieval. cross_attention_layers: 1-based decoder layers; empty = the base trained on
    without retrieval, the control. chunk_length: None = the base's, 64 for a Hugging Face folder. encoder, gate: as in
    ModelConfig; the default gate is learned from 0 on, so that the model starts as exactly its base. dropout of the
    decoder: None = the base's.
    """

    base: str
    cross_attention_layers: tuple[int, ...]
    chunk_length: int | None = None
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    gate: GateConfig = field(default_factory=lambda: GateConfig(kind="learned", value=0.0))
    dropout: float | None = None

    def __post_init__(self) -> None:
        require(self.base != "", "base", "expected the path of a model, found an empty text")
        require_positive(self, "chunk_length")
        if self.dropout is not None:
            require_rate(self.dropout, "dropout")
        if not self.cross_attention_layers:
            unread = (("encoder", EncoderConfig()), ("gate", GateConfig(kind="learned", value=0.0)))
            for name, default in unread:
                require(getattr(self, name) == default, name, "not read with cross_attention_layers: []; remove it")
