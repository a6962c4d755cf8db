"""Folders written from our decoder: transformers opens them and computes what we do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from retro.config.errors import ConfigError
from retro.config.model import EncoderConfig, ModelConfig, RotaryScaling
from retro.model import RetroModel
from retro.model.huggingface import Tokens, load_huggingface, read_huggingface_config, save_huggingface
from retro.model.huggingface.export import choose_architecture
from tests.model.builders import scrambled
from tests.model.huggingface.tiny_models import CASES, VOCABULARY, reopen, save, their_logits, tokens

BASE: dict[str, Any] = {"vocab_size": VOCABULARY, "width": 32, "num_layers": 2, "num_heads": 4, "chunk_length": 8}
NEOX: dict[str, Any] = {**BASE, "norm": "layernorm", "ffn": "gelu", "rotary_fraction": 0.5}
GPT2: dict[str, Any] = {**BASE, "norm": "layernorm", "ffn": "gelu_tanh", "positions": "learned", "max_positions": 48}
LLAMA: dict[str, Any] = {**BASE, "norm": "rmsnorm", "ffn": "swiglu"}
#: Our own configurations, and the model type that computes them.
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LLAMA),
    "llama-bias": ("llama", {**LLAMA, "bias": True, "num_kv_heads": 2, "tie_embeddings": False}),
    "llama-attention-bias": ("llama", {**LLAMA, "attention_bias": True, "norm_eps": 1e-3, "head_width": 12}),
    "llama-linear": ("llama", {**LLAMA, "rotary_scaling": RotaryScaling("linear", 2.0), "rotary_base": 700.0}),
    "llama-llama3": ("llama", {**LLAMA, "rotary_scaling": RotaryScaling("llama3", 4.0, original_positions=16)}),
    "neox": ("gpt_neox", {**NEOX, "bias": True}),
    "neox-parallel": ("gpt_neox", {**NEOX, "bias": True, "block": "parallel", "ffn": "gelu_tanh"}),
    "neox-without-biases": ("gpt_neox", NEOX),
    "neox-attention-bias": ("gpt_neox", {**NEOX, "attention_bias": True, "tie_embeddings": False}),
    "gpt2": ("gpt2", {**GPT2, "bias": True, "ffn_width": 40}),
    "gpt2-without-biases": ("gpt2", {**GPT2, "tie_embeddings": False}),
}


def made(name: str, **changes: Any) -> RetroModel:
    return scrambled(ModelConfig(**{**OURS[name][1], **changes}), dtype=torch.float32).eval()


@pytest.mark.parametrize("name", sorted(OURS))
@torch.no_grad()
def test_transformers_opens_what_is_written(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="opens the folder with the package transformers")
    model = made(name)
    save_huggingface(model, tmp_path / "out", tokens=Tokens(1, 2, 0), max_positions=99)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == OURS[name][0]
    theirs = reopen(tmp_path / "out")
    expected = model(tokens()).logits
    assert expected.std() > 0.3
    torch.testing.assert_close(their_logits(theirs, tokens()), expected, rtol=0, atol=1e-4)
    assert (theirs.generation_config.bos_token_id, theirs.generation_config.eos_token_id) == (1, 2)
    assert theirs.config.max_position_embeddings == (model.config.max_positions or 99)


@pytest.mark.parametrize("name", sorted(OURS))
@torch.no_grad()
def test_reading_back_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    model = made(name)
    save_huggingface(model, tmp_path / "out")
    again = load_huggingface(tmp_path / "out")
    if "without" not in name and name != "neox-attention-bias":  # those have zero biases now
        assert again.state_dict().keys() == model.state_dict().keys()
        for key, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[key], tensor), key
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("name", sorted(CASES))
def test_read_and_written_again_are_the_same_weights(name: str, tmp_path: Path) -> None:
    save(name, tmp_path / "theirs")
    model = load_huggingface(tmp_path / "theirs")
    save_huggingface(model, tmp_path / "ours", max_positions=64)
    assert read_huggingface_config(tmp_path / "ours") == model.config
    before, after = (load_file(tmp_path / part / "model.safetensors") for part in ("theirs", "ours"))
    before = {key.replace("lm_head", "embed_out") if "neox" in name else key: value for key, value in before.items()}
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@torch.no_grad()
def test_of_a_retro_the_decoder_is_written(tmp_path: Path) -> None:
    changes = {"cross_attention_layers": (2,), "encoder": EncoderConfig(num_layers=1)}
    model = made("llama", **changes)
    save_huggingface(model, tmp_path / "out")
    again = load_huggingface(tmp_path / "out")
    assert not again.config.is_retro
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)


@torch.no_grad()
def test_several_files_and_half_precision(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="opens the folder with the package transformers")
    model = made("neox")
    save_huggingface(model, tmp_path / "out", shard_bytes=10_000, dtype="bfloat16")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert "model.safetensors.index.json" in names
    shards = list((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 3
    assert {t.dtype for path in shards for t in load_file(path).values()} == {torch.bfloat16}
    ours = load_huggingface(tmp_path / "out")
    torch.testing.assert_close(
        their_logits(reopen(tmp_path / "out"), tokens()), ours(tokens()).logits, rtol=0, atol=1e-4
    )
    torch.testing.assert_close(ours.embedding.weight, model.embedding.weight, rtol=2**-8, atol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"smear_keys": True}, ["smear_keys: true"]),
        ({"qk_norm": True}, ["qk_norm: true"]),
        ({"embedding_norm": True}, ["embedding_norm: true"]),
        ({"ffn": "gelu"}, ["llama", "ffn: gelu"]),
        ({"rotary_fraction": 0.5}, ["rotary_fraction: 0.5"]),
        ({"block": "parallel"}, ["block: parallel"]),
        ({"norm": "layernorm", "num_kv_heads": 2}, ["norm: layernorm"]),
        ({"dropout": 0.1}, ["dropout: 0.1"]),
        ({**GPT2, "head_width": 6}, ["gpt2", "head_width: 6"]),
        ({**NEOX, "num_kv_heads": 2}, ["gpt_neox", "num_kv_heads: 2"]),
        ({"head_width": 6, "num_heads": 5}, ["num_heads: 5"]),
        ({"positions": "learned", "max_positions": 9}, ["positions: learned"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_no_architecture_expresses_is_refused_by_name(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_architecture(ModelConfig(**{**LLAMA, **changes}))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_nothing_is_overwritten_and_nothing_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("llama")
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        save_huggingface(model, tmp_path / "there")
    with pytest.raises(ConfigError, match="smear_keys"):
        save_huggingface(RetroModel(dataclasses.replace(model.config, smear_keys=True)), tmp_path / "new")

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("retro.model.huggingface.export.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        save_huggingface(model, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_more_files_are_written_along(tmp_path: Path) -> None:
    save_huggingface(made("llama"), tmp_path / "a" / "out", files={"tokenizer.json": b"{}"})
    names = {path.name for path in (tmp_path / "a" / "out").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
