"""Optimizers by name."""

from __future__ import annotations

import typing

import pytest
import torch

from retro.config.train import TrainConfig
from retro.model import RetroModel
from retro.optim.build import BUILDERS, build_optimizer
from tests.model.builders import tiny


def test_every_name_has_a_builder():
    assert set(BUILDERS) == set(typing.get_args(typing.get_type_hints(TrainConfig)["optimizer"]))


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_settings_reach_the_optimizer(name: str):
    config = TrainConfig(
        name="run", release="release.json", optimizer=name, learning_rate=0.25, min_learning_rate=0.0,
        weight_decay=0.5, beta1=0.7, beta2=0.8, adam_eps=1e-3,
    )  # fmt: skip
    optimizer = build_optimizer(config, RetroModel(tiny()))
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.5, 0.0}
    adam = [group for group in optimizer.param_groups if "betas" in group]
    assert adam and all(group["betas"] == (0.7, 0.8) and group["eps"] == 1e-3 for group in adam)


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_the_state_is_tensors_for_every_parameter(name: str):
    model = RetroModel(tiny(bias=True))
    optimizer = build_optimizer(TrainConfig(name="run", release="release.json", optimizer=name), model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        assert state and all(isinstance(value, torch.Tensor) for value in state.values())
        assert all(value.shape in (parameter.shape, torch.Size([])) for value in state.values())
