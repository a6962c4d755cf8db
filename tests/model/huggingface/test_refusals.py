"""What cannot be computed exactly is refused by name; what is damaged, in one clear line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from retro.config.errors import ArtifactCorruptError, ArtifactError, ArtifactMismatchError, ArtifactMissingError
from retro.config.retrofit import RetrofitConfig
from retro.model.huggingface import is_huggingface_folder, load_huggingface, read_huggingface_config
from retro.model.pretrained import load_pretrained
from retro.model.retrofit import build_retrofit
from tests.model.huggingface.tiny_models import COMMON, LLAMA3, save


def write_config(folder: Path, kind: str, **settings: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **COMMON.get(kind, {}), **settings}))
    return folder


def refused(folder: Path, *words: str, error: type[ArtifactError] = ArtifactMismatchError) -> None:
    """Loading fails with one line that holds all `words`."""
    with pytest.raises(error) as caught:
        load_huggingface(folder)
    line = str(caught.value)
    assert "\n" not in line
    assert str(folder) in line
    for word in words:
        assert word in line, line


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx"]),
        ("gpt2", {"scale_attn_weights": False}, ["scale_attn_weights", "expected true"]),
        ("gpt2", {"add_cross_attention": True}, ["add_cross_attention"]),
        ("gpt2", {"activation_function": "relu"}, ["activation_function", "'relu'".replace("'", '"')]),
        ("gpt2", {"resid_pdrop": 0.1, "attn_pdrop": 0.0, "embd_pdrop": 0.1}, ["attn_pdrop 0", "resid_pdrop 0.1"]),
        ("llama", {"sliding_window": 128}, ["sliding_window", "128"]),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, ["rope_type", "yarn"]),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ["type", "dynamic"]),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, ["rope_type", "longrope"]),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "beta_fast": 3}}, ["beta_fast"]),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, ["factor"]),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
        ("llama", {"rope_interleaved": True}, ["rope_interleaved"]),
        ("llama", {"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
        ("llama", {"attention_dropout": 0.1}, ["attention_dropout"]),
        ("llama", {"num_key_value_heads": 3}, ["num_kv_heads"]),
        ("llama", {"num_experts": 8}, ["num_experts"]),
        ("llama", {"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ("llama", {"auto_map": {"AutoModelForCausalLM": "modeling.X"}}, ["auto_map"]),
        ("llama", {"hidden_size": "many"}, ["hidden_size", "many"]),
        ("llama", {"mlp_bias": 1}, ["mlp_bias"]),
        ("gpt_neox", {"hidden_act": "silu"}, ["hidden_act", "silu"]),
        ("gpt_neox", {"rotary_pct": 0.2}, ["rotary_pct"]),
        ("gpt_neox", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ("gpt_neox", {"hidden_dropout": 0.1}, ["hidden_dropout"]),
        ("mistral", {}, ["model_type", "mistral", "gpt2, llama, gpt_neox"]),
    ],
    ids=lambda value: next(iter(value), None) if isinstance(value, dict) else None,
)
def test_unsupported_settings_are_refused_by_name(
    kind: str, settings: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    refused(write_config(tmp_path, kind, **settings), *words)


def test_settings_without_effect_are_passed_over(tmp_path: Path) -> None:
    plain = read_huggingface_config(write_config(tmp_path, "llama"))
    inert = {
        "_name_or_path": "x",
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "pretraining_tp": 2,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0",
        "use_cache": False,
        "rope_interleaved": False,
        "is_llama_config": True,
        "transformers.js_config": {"dtype": "q4"},
        "sliding_window": None,
        "attention_dropout": 0.0,
    }
    assert read_huggingface_config(write_config(tmp_path, "llama", **inert)) == plain


def test_scaling_takes_its_length_from_the_model_if_it_has_none(tmp_path: Path) -> None:
    scaling = {k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"}
    config = read_huggingface_config(write_config(tmp_path, "llama", rope_scaling=scaling))
    assert config.rotary_scaling is not None
    assert config.rotary_scaling.original_positions == COMMON["llama"]["max_position_embeddings"]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    save("llama", tmp_path)
    return tmp_path


def test_pickles_are_never_opened(llama: Path) -> None:
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    refused(llama, "pytorch_model.bin", "safetensors", "save_pretrained", error=ArtifactMissingError)
    (llama / "pytorch_model.bin").unlink()
    refused(llama, "no model.safetensors", error=ArtifactMissingError)


@pytest.mark.parametrize("keep", [0, 7, 500, -9])
def test_truncated_weights(llama: Path, keep: int) -> None:
    path = llama / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(llama, "model.safetensors", "not a whole safetensors file", error=ArtifactCorruptError)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_broken_config(llama: Path, text: str) -> None:
    (llama / "config.json").write_text(text)
    refused(llama, "config.json", error=ArtifactCorruptError)
    assert not is_huggingface_folder(llama)


def test_nothing_there(tmp_path: Path) -> None:
    refused(tmp_path, "config.json", error=ArtifactMissingError)


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replace, add or (None) remove stored tensors; `__` in a name is a dot."""
    path = folder / "model.safetensors"
    stored = load_file(path)
    for name, tensor in tensors.items():
        name = name.replace("__", ".")
        if tensor is None:
            del stored[name]
        else:
            stored[name] = tensor
    save_file(stored, path)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"model__layers__1__mlp__up_proj__weight": None}, ["1 missing", "layers.1.mlp.up_proj.weight"]),
        ({"lm_head__weight": None}, ["missing", "lm_head.weight"]),
        ({"score__weight": torch.ones(2, 2)}, ["1 unexpected", "score.weight"]),
        ({"model__layers__0__self_attn__q_proj__bias": torch.ones(32)}, ["unexpected", "q_proj.bias"]),
        ({"model__norm__weight": torch.ones(31)}, ["model.norm.weight", "expected shape [32]", "found [31]"]),
        ({"model__norm__weight": torch.ones(32, dtype=torch.int8)}, ["model.norm.weight", "I8", "quantised"]),
    ],
    ids=["missing", "no-head", "foreign", "bias", "shape", "quantised"],
)
def test_weights_that_do_not_fit(llama: Path, tensors: dict[str, Any], words: list[str]) -> None:
    change(llama, **tensors)
    refused(llama, *words)


def test_a_tied_head_with_other_numbers_is_refused(tmp_path: Path) -> None:
    save("gpt2", tmp_path)
    change(tmp_path, lm_head__weight=torch.ones(61, 24))
    refused(tmp_path, "tie_word_embeddings", "lm_head.weight")


class TestIndex:
    @pytest.fixture
    def sharded(self, tmp_path: Path) -> Path:
        save("llama", tmp_path / "model", max_shard_size="20KB")
        return tmp_path / "model"

    def test_a_file_is_missing(self, sharded: Path) -> None:
        path = sorted(sharded.glob("model-*.safetensors"))[1]
        path.unlink()
        refused(sharded, path.name, "missing", error=ArtifactCorruptError)

    def test_a_file_is_truncated(self, sharded: Path) -> None:
        path = sorted(sharded.glob("model-*.safetensors"))[1]
        path.write_bytes(path.read_bytes()[:-3])
        refused(sharded, path.name, "not a whole", error=ArtifactCorruptError)

    @pytest.mark.parametrize("name", ["../other.safetensors", "pytorch_model.bin", "/etc/passwd"])
    def test_it_names_files_elsewhere(self, sharded: Path, name: str) -> None:
        path = sharded / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        shutil.copy(sharded / index["weight_map"]["lm_head.weight"], sharded.parent / "other.safetensors")
        index["weight_map"]["lm_head.weight"] = name
        path.write_text(json.dumps(index))
        refused(sharded, "expected names of safetensors files", name, error=ArtifactCorruptError)

    def test_it_promises_a_tensor_that_is_nowhere(self, sharded: Path) -> None:
        path = sharded / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        index["weight_map"]["x"] = index["weight_map"]["lm_head.weight"]
        path.write_text(json.dumps(index))
        refused(sharded, "names x", error=ArtifactCorruptError)

    @pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "nonsense"])
    def test_it_is_not_one(self, sharded: Path, content: str) -> None:
        (sharded / "model.safetensors.index.json").write_text(content)
        refused(sharded, "index.json", error=ArtifactCorruptError)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"vocab_size": 10**12}, ["model.embed_tokens.weight", "1000000000000"]),
        ({"vocab_size": 10**18}, ["too large"]),
        ({"vocab_size": 10**30}, ["too large"]),
        ({"num_hidden_layers": 10**9}, ["1000000000 layers"]),
        ({"intermediate_size": 10**13}, ["mlp.gate_proj.weight", "10000000000000"]),
        ({"rms_norm_eps": 10**400}, ["rms_norm_eps", "finite"]),
        ({"rope_theta": float("inf"), "rope_parameters": None}, ["rope_theta", "finite"]),
        ({"model_type": []}, ["model_type", "[]"]),
    ],
)
def test_a_configuration_is_not_believed_before_the_weights_are_seen(
    settings: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "hostile"
    save("llama", folder)
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stored, **settings}))
    refused(folder, *words)
    with pytest.raises(ArtifactMismatchError, match=re.escape(words[0])):
        build_retrofit(RetrofitConfig(base=str(folder), cross_attention_layers=(1,)))


def test_json_that_is_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "a": ' + "[" * 100_000)
    with pytest.raises(ArtifactCorruptError, match="not readable as JSON"):
        load_huggingface(tmp_path)
    with pytest.raises(ArtifactCorruptError, match="not readable as JSON"):
        load_pretrained(tmp_path)


def test_a_weight_under_two_names(tmp_path: Path) -> None:
    save("llama", tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    weights["embed_tokens.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(weights, tmp_path / "m" / "model.safetensors")
    refused(tmp_path / "m", "embed_tokens.weight and model.embed_tokens.weight")
