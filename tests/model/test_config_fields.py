"""Every field of the configuration has an effect, and impossible ones are refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from retro.config.errors import ConfigError
from retro.config.model import EncoderConfig, GateConfig, ModelConfig, RotaryScaling
from retro.model import RetroModel
from tests.model.builders import TINY, K, R, random_tokens, tiny

# One changed value for every field; a field without an entry fails test_every_field_is_covered.
CHANGES: dict[str, object] = {
    "vocab_size": 31,
    "width": 32,
    "num_layers": 4,
    "num_heads": 4,
    "head_width": 10,
    "num_kv_heads": 1,
    "ffn_width": 40,
    "ffn": "gelu",
    "norm": "layernorm",
    "norm_eps": 0.5,
    "bias": True,
    "attention_bias": True,
    "ffn_bias": True,
    "block": "parallel",
    "positions": "learned",
    "max_positions": 64,
    "gate_kind": "learned",
    "gate_value": 0.5,
    "rotary_scaling_kind": "linear",
    "rotary_scaling_factor": 2.0,
    "rotary_scaling_low_frequency_factor": 2.0,
    "rotary_scaling_high_frequency_factor": 8.0,
    "rotary_scaling_original_positions": 40,
    "rotary_base": 10.0,
    "rotary_fraction": 0.5,
    "qk_norm": True,
    "smear_keys": True,
    "tie_embeddings": False,
    "dropout": 0.5,
    "chunk_length": 8,
    "cross_attention_layers": (1, 3),
    "init_std": 0.05,
    "embedding_norm": True,
    "attention_init": "mimetic",
    "encoder_num_layers": 3,
    "encoder_width": 8,
    "encoder_num_heads": 4,
    "encoder_ffn_width": 10,
    "encoder_cross_attention_layers": (2,),
    "encoder_dropout": 0.5,
}


def test_every_field_is_covered() -> None:
    fields = {f.name for f in dataclasses.fields(ModelConfig)} - {"encoder", "gate", "rotary_scaling"}
    fields |= {f"encoder_{f.name}" for f in dataclasses.fields(EncoderConfig)}
    fields |= {f"gate_{f.name}" for f in dataclasses.fields(GateConfig)}
    fields |= {f"rotary_scaling_{f.name}" for f in dataclasses.fields(RotaryScaling)}
    assert fields == set(CHANGES)


def logits(config: ModelConfig) -> tuple[dict[str, torch.Size], torch.Tensor]:
    """Parameter names and shapes, and the training-mode output, with weights large enough to show any difference."""
    torch.manual_seed(0)
    model = RetroModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and name != "embedding.weight":
                parameter.mul_(8)
        torch.manual_seed(1)
        out = model(random_tokens(2, 16), random_tokens(2, 2, K, R, seed=1)).logits
    return {n: p.shape for n, p in model.named_parameters()}, out


# What a field needs besides to be allowed at all.
LLAMA3 = {
    "rotary_scaling_kind": "llama3",
    "rotary_scaling_factor": 4.0,
    "rotary_scaling_original_positions": 64,
    "rotary_base": 100.0,
}
NEEDS: dict[str, dict[str, object]] = {
    "attention_init": {"embedding_norm": True},
    "positions": {"max_positions": 32},
    "max_positions": {"positions": "learned", "max_positions": 32},
    "rotary_scaling_kind": {name: value for name, value in LLAMA3.items() if not name.endswith("original_positions")},
} | {f"rotary_scaling_{f.name}": LLAMA3 for f in dataclasses.fields(RotaryScaling) if f.name != "kind"}


@pytest.mark.parametrize("field", CHANGES)
def test_field_has_an_effect(field: str) -> None:
    needs = NEEDS.get(field, {})
    if field == "positions":
        shapes, before = logits(TINY)
    else:
        shapes, before = logits(tiny(**needs))
    changed_shapes, after = logits(tiny(**(needs | {field: CHANGES[field]})))
    same = before.shape == after.shape and torch.allclose(before, after, rtol=0, atol=1e-6)
    assert shapes != changed_shapes or not same


def test_number_of_heads_changes_the_function_not_the_parameters() -> None:
    """The field most often ignored elsewhere; the shapes are those of two heads."""
    shapes, before = logits(TINY)
    changed_shapes, after = logits(tiny(num_heads=4))
    assert shapes == changed_shapes
    assert not torch.allclose(before, after, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "num_heads: 3 does not divide width 16"),
        ({"num_kv_heads": 3, "num_heads": 4}, "num_kv_heads: 3 does not divide num_heads 4"),
        ({"cross_attention_layers": (4,)}, "cross_attention_layers: layer 4 does not exist"),
        ({"cross_attention_layers": (2, 2)}, "cross_attention_layers: expected ascending distinct"),
        ({"cross_attention_layers": (0,)}, "layer 0 does not exist"),
        ({"rotary_fraction": 0.0}, "rotary_fraction"),
        ({"rotary_fraction": 0.1}, "rotates nothing"),
        ({"dropout": 1.0}, "dropout"),
        ({"width": 0}, "width"),
        ({"norm": "batchnorm"}, "norm: expected one of rmsnorm, layernorm"),
        ({"encoder_cross_attention_layers": (3,)}, "layer 3 does not exist"),
        ({"encoder_width": 12}, "encoder.width: 12 is not a multiple of the head width 8"),
        ({"encoder_width": 12, "encoder_num_heads": 5}, "encoder.num_heads: 5 does not divide"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"init_std": 0.0}, "init_std"),
        ({"rotary_base": 1.0}, "rotary_base"),
        ({"attention_init": "mimetic"}, "'mimetic' needs embedding_norm"),
        ({"positions": "learned"}, "max_positions: positions: learned needs the size of its table"),
        ({"max_positions": 8}, "max_positions: is read with positions: learned only"),
        (
            {"positions": "learned", "max_positions": 8, "rotary_scaling_kind": "linear", "rotary_scaling_factor": 2.0},
            "rotary_scaling: is read with positions: rotary only",
        ),
        ({"block": "both"}, "block: expected one of serial, parallel"),
        ({"gate_value": (1.0,)}, "gate.value: expected one number, or 2, one per RETRO layer"),
        ({"gate_value": float("nan")}, "value: expected finite numbers"),
        ({"gate_kind": "tanh"}, "kind: expected fixed or learned"),
        ({"gate_value": 0.5, "cross_attention_layers": ()}, "gate: a plain GPT"),
        ({"rotary_scaling_kind": "yarn", "rotary_scaling_factor": 2.0}, "kind: expected linear or llama3"),
        ({"rotary_scaling_kind": "linear", "rotary_scaling_factor": 0.5}, "factor: expected a number >= 1"),
        ({"rotary_scaling_kind": "linear", "rotary_scaling_factor": float("inf")}, "factor: expected a number >= 1"),
        (
            {
                "rotary_scaling_kind": "linear",
                "rotary_scaling_factor": 2.0,
                "rotary_scaling_original_positions": 40,
            },
            "original_positions: is read with kind: llama3 only",
        ),
        ({"attention_init": "zero"}, "attention_init: expected one of normal, mimetic"),
    ],
)
def test_impossible_values_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny(**changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_vocabulary_must_be_known() -> None:
    with pytest.raises(ConfigError, match="vocab_size: not set"):
        RetroModel(tiny(vocab_size=None))
