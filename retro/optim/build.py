"""The optimizer that a configuration names. A further one: a file with a `build_...`, and its line here."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from retro.config.train import TrainConfig
from retro.optim.adamw import build_adamw
from retro.optim.muon import build_muon

#: By the name in `TrainConfig.optimizer`: (model, learning_rate=, weight_decay=, betas=, eps=) -> an optimizer over its
#: trainable parameters, plain or sharded, whose state is tensors only. The trainer sets `lr` of all its groups.
BUILDERS: dict[str, Callable[..., Optimizer]] = {
    "adamw": build_adamw,
    "muon": build_muon,
}


def build_optimizer(config: TrainConfig, model: nn.Module) -> Optimizer:
    """The optimizer of `config.optimizer` over the trainable parameters of `model`, which is sharded already if it is
    to be."""
    return BUILDERS[config.optimizer](
        model,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=(config.beta1, config.beta2),
        eps=config.adam_eps,
    )
