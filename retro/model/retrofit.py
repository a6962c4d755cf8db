"""RETROfitting: a pretrained decoder gets retrieval parameters (Borgeaud et al. 2022, section 4.2).

With the default gate, learned from 0 on, the new model computes bit for bit what its base does until it is trained.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from retro.config.errors import ArtifactMismatchError, ConfigError
from retro.config.model import GateConfig, ModelConfig
from retro.config.retrofit import RetrofitConfig
from retro.model.pretrained import Pretrained, open_pretrained
from retro.model.retro import RetroModel, is_retrieval_parameter


def open_base(path: str | Path) -> Pretrained:
    """The base model at `path`, its checksums compared where they are recorded.

    Raises ArtifactError subclasses; ArtifactMismatchError for a model that has retrieval already.
    """
    base = open_pretrained(path, "retrofit.base")
    if base.config.is_retro:
        raise ArtifactMismatchError(
            f"retrofit.base: {base.folder}: expected a model without retrieval, found a RETRO; to train it on, use "
            "init_from"
        )
    base.check()
    return base


def retrofit_config(base: ModelConfig, parts: RetrofitConfig) -> ModelConfig:
    """The decoder of `base` with the retrieval of `parts`. Raises ConfigError if they do not fit."""
    try:
        return dataclasses.replace(
            base,
            chunk_length=base.chunk_length if parts.chunk_length is None else parts.chunk_length,
            cross_attention_layers=parts.cross_attention_layers,
            encoder=parts.encoder,
            gate=parts.gate if parts.cross_attention_layers else GateConfig(),
            dropout=base.dropout if parts.dropout is None else parts.dropout,
        )
    except ConfigError as error:
        raise ConfigError(f"retrofit: {error}") from None


def build_retrofit(parts: RetrofitConfig) -> RetroModel:
    """The model that `parts` describes, its decoder filled with the weights of `parts.base`; retrieval parameters are
    drawn as in RetroModel. On the CPU, in float32 and training mode."""
    base = open_base(parts.base)
    model = RetroModel(retrofit_config(base.config, parts))
    base.fill_backbone(model)
    return model


def freeze_backbone(model: RetroModel) -> None:
    """Leave only the retrieval parameters trainable: encoder, cross-attention and gates.

    Raises ConfigError for a model without them, or whose gates are all fixed to 0.
    """
    check_freezable(model.config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_retrieval_parameter(name))


def freeze_retrieval(model: RetroModel) -> None:
    """Leave only the decoder's parameters trainable, those that the GPT of the same decoder has: for data without
    neighbors, where the others get no gradient (the gate at 0 of Wang et al. 2024, section 4.2)."""
    for name, parameter in model.named_parameters():
        if is_retrieval_parameter(name):
            parameter.requires_grad_(False)


def check_freezable(config: ModelConfig) -> None:
    """Raise ConfigError unless the model has parameters to train besides the decoder's."""
    if not config.is_retro:
        raise ConfigError(
            "freeze_backbone: a plain GPT (cross_attention_layers: []) has no other parameters to train; remove it"
        )
    gates = [config.gate.of_layer(i) for i in range(len(config.cross_attention_layers))]
    if config.gate.kind == "fixed" and not any(gates):
        raise ConfigError("freeze_backbone: all gates are fixed to 0, so nothing is left to train; change gate")
