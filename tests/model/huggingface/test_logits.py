"""Our decoder computes what transformers computes, from the same files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from retro.model.huggingface import load_huggingface
from tests.model.huggingface.tiny_models import CASES, reopen, save, their_logits, tokens

TOLERANCE = 1e-4


@torch.no_grad()
def assert_same_logits(theirs, folder: Path, tolerance: float = TOLERANCE) -> None:
    expected = their_logits(theirs, tokens())
    found = load_huggingface(folder)(tokens()).logits
    assert expected.std() > 0.3, "logits that hardly differ would hide mistakes"
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", sorted(CASES))
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    assert_same_logits(save(name, tmp_path), tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "llama-llama3", "neox-pythia"])
def test_every_weight_matters(name: str, tmp_path: Path) -> None:
    """The comparison above would notice a tensor that is left out, in whatever layer."""
    theirs = save(name, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    expected = their_logits(theirs, tokens())
    for name in stored:
        changed = {**stored, name: stored[name] * 1.5}
        if name.endswith("wte.weight"):
            changed[name] = stored[name].roll(1, 0)
        save_file(changed, tmp_path / "model.safetensors")
        with torch.no_grad():
            found = load_huggingface(tmp_path)(tokens()).logits
        assert (found - expected).abs().max() > 20 * TOLERANCE, name


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox-serial"])
def test_several_files(name: str, tmp_path: Path) -> None:
    theirs = save(name, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same_logits(theirs, tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_stored_and_float32_computed(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = save("llama-smollm2", tmp_path)
    theirs.to(dtype).save_pretrained(tmp_path)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    assert next(load_huggingface(tmp_path).parameters()).dtype == torch.float32
    assert_same_logits(reopen(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("name", "prefix", "buffers"),
    [
        ("gpt2", "transformer.", ["h.0.attn.bias", "h.2.attn.masked_bias"]),
        ("llama", "model.", ["layers.1.self_attn.rotary_emb.inv_freq"]),
        (
            "neox-pythia",
            "gpt_neox.",
            ["layers.0.attention.bias", "layers.1.attention.masked_bias", "layers.0.attention.rotary_emb.inv_freq"],
        ),
    ],
)
def test_stored_buffers_are_passed_over(name: str, prefix: str, buffers: list[str], tmp_path: Path) -> None:
    """Older versions stored masks and frequencies beside the weights."""
    theirs = save(name, tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({**load_file(path), **{prefix + buffer: torch.ones(3) for buffer in buffers}}, path)
    assert_same_logits(theirs, tmp_path)


@pytest.mark.parametrize(("name", "prefix"), [("gpt2", "transformer."), ("llama-smollm2", "model.")])
def test_a_model_saved_without_its_head_has_no_prefix(name: str, prefix: str, tmp_path: Path) -> None:
    theirs = save(name, tmp_path)
    path = tmp_path / "model.safetensors"
    stored = load_file(path)
    assert all(key.startswith(prefix) for key in stored)
    save_file({key.removeprefix(prefix): value for key, value in stored.items()}, path)
    assert_same_logits(theirs, tmp_path)


def test_both_names_of_the_head_of_gpt_neox(tmp_path: Path) -> None:
    theirs = save("neox-pythia", tmp_path)
    path = tmp_path / "model.safetensors"
    stored = load_file(path)
    (old,) = (key for key in stored if key in ("embed_out.weight", "lm_head.weight"))
    new = {"embed_out.weight": "lm_head.weight", "lm_head.weight": "embed_out.weight"}[old]
    stored[new] = stored.pop(old)
    save_file(stored, path)
    assert_same_logits(theirs, tmp_path)


def test_a_tied_head_that_is_stored_too(tmp_path: Path) -> None:
    theirs = save("gpt2", tmp_path)
    path = tmp_path / "model.safetensors"
    stored = load_file(path)
    save_file({**stored, "lm_head.weight": stored["transformer.wte.weight"].clone()}, path)
    assert_same_logits(theirs, tmp_path)


@pytest.mark.parametrize("name", sorted(CASES))
def test_settings_of_transformers_4_mean_the_same(name: str, tmp_path: Path) -> None:
    """config.json as older versions wrote it: with rope_theta and rope_scaling, and defaults left out."""
    theirs = save(name, tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    rope = settings.pop("rope_parameters", None)
    if rope is not None:
        theta, share = ("rope_theta", "") if "llama" in name else ("rotary_emb_base", "rotary_pct")
        settings[theta] = rope.pop("rope_theta")
        fraction = rope.pop("partial_rotary_factor", None)
        if fraction is not None and share:
            settings[share] = fraction
        settings["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    path.write_text(json.dumps(settings))
    assert_same_logits(theirs, tmp_path)
