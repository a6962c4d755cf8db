"""Small models and inputs for the tests of this folder."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from retro.config.model import EncoderConfig, GateConfig, ModelConfig, RotaryScaling
from retro.model import RetroModel

M, K, R, V = 4, 2, 8, 23

TINY = ModelConfig(
    vocab_size=V,
    width=16,
    num_layers=3,
    num_heads=2,
    ffn_width=24,
    chunk_length=M,
    cross_attention_layers=(2, 3),
    encoder=EncoderConfig(num_layers=2, cross_attention_layers=(1,)),
)


def tiny(**changes: Any) -> ModelConfig:
    """TINY with fields changed; `encoder_x`, `gate_x`, `rotary_scaling_x` are fields x of those parts."""

    def taken(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): changes.pop(name) for name in list(changes) if name.startswith(prefix)}

    encoder, gate, scaling = taken("encoder_"), taken("gate_"), taken("rotary_scaling_")
    return dataclasses.replace(
        TINY,
        **changes,
        encoder=dataclasses.replace(TINY.encoder, **encoder),
        gate=GateConfig(**gate),
        rotary_scaling=RotaryScaling(**scaling) if scaling else None,
    )


def scrambled(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> RetroModel:
    """A model whose parameters are all far from their initial values, so that every one of them matters."""
    torch.manual_seed(seed)
    model = RetroModel(config).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
            parameter.copy_(noise * (parameter.shape[-1] ** -0.5 * 2) if parameter.ndim > 1 else 1 + 0.5 * noise)
    return model


def random_tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


def suffix_mask(batch: int, chunks: int, neighbors: int = K, retrieved: int = R, seed: int = 0) -> Tensor:
    """Real tokens first, then padding, as the data has it; some neighbors are missing (length 0)."""
    lengths = torch.randint(
        0, retrieved + 1, (batch, chunks, neighbors, 1), generator=torch.Generator().manual_seed(seed)
    )
    return torch.arange(retrieved) < lengths


def as_lists(neighbors_LKR: Tensor, mask_LKR: Tensor) -> list[list[list[tuple[int, int]]]]:
    """One sequence's neighbors in the form of tests.reference.slow_retro: real tokens only, with their positions."""
    return [
        [
            [(i, int(t)) for i, (t, real) in enumerate(zip(tokens, mask, strict=True)) if real]
            for tokens, mask in zip(row, row_mask, strict=True)
        ]
        for row, row_mask in zip(neighbors_LKR, mask_LKR, strict=True)
    ]
