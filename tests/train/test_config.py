"""TrainConfig: refusals, and which fields are a run's identity."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from retro.config.errors import ConfigError
from retro.config.loader import load_config, to_dict
from retro.config.train import FREE_FIELDS, TrainConfig, result_fields

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "train"


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a/b"},
        {"name": ".."},
        {"release": ""},
        {"steps": 0},
        {"micro_batch": 3},
        {"warmup_steps": 1001},
        {"decay_steps": 99},
        {"decay_steps": 1001},
        {"min_learning_rate": 1.0},
        {"beta2": 1.0},
        {"gradient_clip": 0.0},
        {"sequence_length": 100},
        {"keep_checkpoints": 0},
        {"weight_decay": -0.1},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_wrong_values_are_refused_by_name(wrong: dict[str, Any]):
    named = "global_batch" if "micro_batch" in wrong else next(iter(wrong))
    with pytest.raises(ConfigError, match=named):
        TrainConfig(**{"name": "x", "release": "r", **wrong})


def test_identity_is_everything_but_place_speed_and_bookkeeping():
    config = TrainConfig(name="x", release="r")
    fields = {field.name for field in dataclasses.fields(config)}
    assert set(FREE_FIELDS) < fields
    assert set(result_fields(config)) == fields - set(FREE_FIELDS)
    for name in ("model", "steps", "seed", "global_batch", "precision", "learning_rate", "validate_sequences"):
        assert name in result_fields(config)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("tiny_*.yaml")), ids=lambda path: path.stem)
def test_smoke_configurations_load(path: Path):
    config = load_config(TrainConfig, path)
    assert config.retrieval == path.stem.endswith("retro")
    header = path.read_text().splitlines()[:3]
    assert [line.split(":")[0] for line in header] == ["# Purpose", "# Hardware", "# Cost"]


def test_the_two_smoke_configurations_differ_in_name_and_cross_attention_only():
    gpt, retro = (to_dict(load_config(TrainConfig, CONFIGS / f"tiny_{kind}.yaml")) for kind in ("gpt", "retro"))
    assert gpt["model"].pop("cross_attention_layers") == []
    assert retro["model"].pop("cross_attention_layers") != []
    assert gpt.pop("name") != retro.pop("name")
    assert gpt == retro
