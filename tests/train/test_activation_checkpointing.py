"""Activations computed again instead of kept: the same training bit for bit, and a choice that is checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from retro.config.errors import ConfigError
from retro.train.run import train
from tests.train import releases


@pytest.mark.parametrize("parts", [("decoder",), ("decoder", "cross_attention", "encoder")])
def test_training_is_the_same(release: Path, tmp_path: Path, parts: tuple[str, ...]) -> None:
    losses = []
    for name, chosen in (("kept", ()), ("again", parts)):
        train(releases.config(release, tmp_path, retro=True, name=name, steps=3, activation_checkpointing=chosen))
        losses.append([row["loss"] for row in releases.metrics(tmp_path / name, "train")])
    assert losses[0] == losses[1]


def test_a_run_may_be_resumed_with_another_choice(release: Path, tmp_path: Path) -> None:
    for parts in ((), ("encoder",)):
        done = train(releases.config(release, tmp_path, retro=True, name="x", steps=2, activation_checkpointing=parts))
        assert done.state.step == 2


@pytest.mark.parametrize(
    ("retro", "parts", "message"),
    [
        (False, ["encoder"], "activation_checkpointing: a plain GPT has no encoder; remove it"),
        (True, ["encoder", "encoder"], "activation_checkpointing: expected each once"),
        (True, ["head"], "expected one of 'decoder', 'cross_attention', 'encoder', found 'head'"),
    ],
)
def test_wrong_choices(release: Path, tmp_path: Path, retro: bool, parts: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        releases.config(release, tmp_path, retro=retro, activation_checkpointing=parts)
    assert message in str(caught.value)
