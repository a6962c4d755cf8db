"""Initial weights: each parameter from a random stream of its own, named by the parameter.

A GPT and a RETRO made from one seed therefore start from the same decoder, and adding or moving a RETRO layer changes
no other layer's start.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retro.config.model import ModelConfig
from retro.model.mimetic import set_mimetic
from retro.model.random_stream import stream
from retro.model.shards import fill_parameter, row_orders


def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Set every parameter of `model` in place; of a sharded one this process's part, one whole matrix at a time.

    Matrices: normal with standard deviation `init_std`; those that write to the residual stream (`out`, `down`) are
    scaled by 1 / sqrt(2 * layers of their stack) (Radford et al. 2019). Norm scales 1, biases and smear
    weights 0, gates as configured.
    """
    with torch.no_grad():
        orders = row_orders(model)
        for name, parameter in model.named_parameters():
            _initialise_one(name, parameter, orders.get(name), config, seed)
        if config.attention_init == "mimetic":
            set_mimetic(model, config, seed)


def _initialise_one(name: str, parameter: Tensor, row_order: Tensor | None, config: ModelConfig, seed: int) -> None:
    if name.endswith(".cross_attention.gate"):
        parameter.fill_(config.gate.of_layer(config.cross_attention_layers.index(int(name.split(".")[1]) + 1)))
        return
    if parameter.ndim < 2:
        parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        return
    std = config.init_std
    if name.endswith((".out.weight", ".down.weight")):
        layers = config.encoder.num_layers if name.startswith("encoder.") else config.num_layers
        std /= (2 * layers) ** 0.5
    generator = stream(seed, name)
    # Drawn on the CPU in float32 whatever the model's device and dtype: the start does not depend on them.
    drawn = torch.empty(parameter.shape, dtype=torch.float32, device="cpu").normal_(0.0, std, generator=generator)
    fill_parameter(parameter, drawn, row_order)
