"""Retrieval for a pretrained decoder: the base bit for bit at first, and nothing else trained when it is frozen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from retro.config.errors import ArtifactMismatchError, ArtifactMissingError, ConfigError
from retro.config.model import EncoderConfig, GateConfig, ModelConfig
from retro.config.retrofit import RetrofitConfig
from retro.model import RetroModel
from retro.model.huggingface import save_huggingface
from retro.model.pretrained import load_pretrained, save_pretrained
from retro.model.retro import is_retrieval_parameter
from retro.model.retrofit import build_retrofit, freeze_backbone, retrofit_config
from retro.optim.adamw import build_adamw
from tests.model.builders import K, R, random_tokens, scrambled, suffix_mask, tiny

GPT = tiny(cross_attention_layers=())
LLAMA = dataclasses.replace(GPT, num_kv_heads=1)
LEARNED = tiny(
    cross_attention_layers=(), positions="learned", max_positions=30, norm="layernorm", ffn="gelu_tanh", bias=True
)
NEOX = tiny(
    cross_attention_layers=(), block="parallel", norm="layernorm", ffn="gelu", bias=True, rotary_fraction=0.5,
    tie_embeddings=False,
)  # fmt: skip


def base(folder: Path, config: ModelConfig = GPT, huggingface: bool = False) -> RetroModel:
    model = scrambled(config, dtype=torch.float32).eval()
    if huggingface:
        save_huggingface(model, folder)
    else:
        save_pretrained(model, folder)
    return model


def parts(folder: Path, **changes: Any) -> RetrofitConfig:
    values = {"base": str(folder), "cross_attention_layers": (2, 3), "chunk_length": 4, **changes}
    return RetrofitConfig(**values)


@pytest.mark.parametrize("huggingface", [False, True], ids=["ours", "huggingface"])
@pytest.mark.parametrize("config", [LLAMA, LEARNED, NEOX], ids=["llama", "gpt2", "gpt_neox"])
@torch.no_grad()
def test_step_0_is_the_base_bit_for_bit(config: ModelConfig, huggingface: bool, tmp_path: Path) -> None:
    model = base(tmp_path / "base", config, huggingface)
    retro = build_retrofit(parts(tmp_path / "base")).eval()
    assert retro.config.is_retro
    tokens, neighbors = random_tokens(2, 19), random_tokens(2, 5, K, R, seed=1)
    mask = suffix_mask(2, 5)
    expected = model(tokens).logits
    assert torch.equal(retro(tokens, neighbors, mask).logits, expected)
    assert torch.equal(retro(tokens).logits, expected)
    # The gate is what holds it: opened, the neighbors matter.
    for layer in retro.decoder_layers:
        if layer.cross_attention is not None:
            assert layer.cross_attention.gate is not None
            layer.cross_attention.gate.fill_(0.1)
    assert not torch.equal(retro(tokens, neighbors, mask).logits, expected)


def test_retrieval_parameters_start_as_in_any_retro(tmp_path: Path) -> None:
    base(tmp_path / "base")
    torch.manual_seed(5)
    retro = build_retrofit(parts(tmp_path / "base"))
    torch.manual_seed(5)
    fresh = RetroModel(retro.config)
    for name, parameter in fresh.named_parameters():
        same = torch.equal(parameter, retro.get_parameter(name))
        assert same == is_retrieval_parameter(name), name


def test_the_decoder_comes_from_the_base(tmp_path: Path) -> None:
    encoder, gate = EncoderConfig(num_layers=1, width=8, num_heads=1), GateConfig("fixed", (0.5, 0.25))
    found = retrofit_config(NEOX, parts(tmp_path, chunk_length=8, encoder=encoder, gate=gate, dropout=0.2))
    assert found == dataclasses.replace(
        NEOX, chunk_length=8, cross_attention_layers=(2, 3), encoder=encoder, gate=gate, dropout=0.2
    )
    plain = retrofit_config(NEOX, RetrofitConfig("x", ()))
    assert plain == NEOX


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_attention_layers": (4,)}, "retrofit: cross_attention_layers: layer 4 does not exist"),
        ({"encoder": EncoderConfig(width=9)}, "retrofit: encoder.width"),
        ({"gate": GateConfig("learned", (0.0,))}, "retrofit: gate.value"),
    ],
    ids=["layer", "encoder", "gate"],
)
def test_retrieval_that_does_not_fit_the_base(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        retrofit_config(GPT, parts(tmp_path, **changes))


@pytest.mark.parametrize(
    "changes",
    [{"base": ""}, {"chunk_length": 0}, {"dropout": 1.5}, {"cross_attention_layers": (), "encoder": EncoderConfig(3)}],
    ids=lambda changes: list(changes)[-1],
)
def test_wrong_descriptions_are_refused_by_name(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=list(changes)[-1]):
        parts(tmp_path, **changes)


def test_a_base_with_retrieval_is_refused(tmp_path: Path) -> None:
    base(tmp_path / "base", tiny())
    with pytest.raises(ArtifactMismatchError, match="found a RETRO"):
        build_retrofit(parts(tmp_path / "base"))
    with pytest.raises(ArtifactMissingError, match=r"retrofit\.base: .*nowhere: no such"):
        build_retrofit(parts(tmp_path / "nowhere"))


class TestFreezing:
    def test_only_retrieval_is_trained(self, tmp_path: Path) -> None:
        base(tmp_path / "base", NEOX)
        model = build_retrofit(parts(tmp_path / "base")).train()
        freeze_backbone(model)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        optimizer = build_adamw(model, learning_rate=0.1, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert trained == {id(p) for name, p in model.named_parameters() if is_retrieval_parameter(name)}
        tokens, neighbors = random_tokens(2, 16), random_tokens(2, 4, K, R, seed=1)
        for _ in range(3):
            model(tokens, neighbors, targets_BN=tokens.roll(-1, 1)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]) != is_retrieval_parameter(name), name

    def test_a_batch_without_neighbors_has_gradients_too(self, tmp_path: Path) -> None:
        base(tmp_path / "base")
        model = build_retrofit(parts(tmp_path / "base")).train()
        freeze_backbone(model)
        tokens, neighbors = random_tokens(1, 8), random_tokens(1, 2, K, R)
        mask = torch.zeros_like(neighbors, dtype=torch.bool)
        model(tokens, neighbors, mask, targets_BN=tokens).loss.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == is_retrieval_parameter(name), name

    @pytest.mark.parametrize(
        ("changes", "message"),
        [({"cross_attention_layers": ()}, "plain GPT"), ({"gate_value": 0.0}, "all gates are fixed to 0")],
        ids=["gpt", "gates"],
    )
    def test_refused_where_nothing_is_left_to_train(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            freeze_backbone(RetroModel(tiny(**changes)))


@torch.no_grad()
def test_a_retrofitted_model_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    base(tmp_path / "base", LEARNED, huggingface=True)
    model = build_retrofit(parts(tmp_path / "base")).eval()
    save_pretrained(model, tmp_path / "saved")
    again = load_pretrained(tmp_path / "saved")
    assert again.config == model.config
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())
