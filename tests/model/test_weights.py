"""Weights and configuration on disk: round trip, and one clear line for everything that does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from retro.config.errors import ArtifactCorruptError, ArtifactError, ArtifactMismatchError, ArtifactMissingError
from retro.model.pretrained import load_pretrained
from retro.model.weights import load_model, load_weights, read_model_config, save_model, save_weights
from tests.model.builders import TINY, K, R, random_tokens, scrambled, tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", scrambled(TINY, dtype=torch.float32), {"tokenizer": "0123456789abcdef"})
    return tmp_path / "model"


def test_round_trip(folder: Path) -> None:
    model = scrambled(TINY, dtype=torch.float32)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    loaded = load_model(folder)
    assert torch.equal(torch.get_rng_state(), state), "loading draws from the random stream"
    assert loaded.config == TINY
    assert not loaded.training
    tokens, neighbors = random_tokens(1, 8), random_tokens(1, 2, K, R, seed=1)
    assert torch.equal(loaded(tokens, neighbors).logits, model(tokens, neighbors).logits)
    assert json.loads((folder / "config.json").read_text())["tokenizer"] == "0123456789abcdef"
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_same_model_same_bytes(folder: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "again", scrambled(TINY, dtype=torch.float32))
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()


def test_keys_are_a_contract() -> None:
    """Names of stored weights: changing one makes older checkpoints unreadable."""
    config = tiny(
        num_layers=1,
        cross_attention_layers=(1,),
        qk_norm=True,
        smear_keys=True,
        tie_embeddings=False,
        encoder_num_layers=1,
        encoder_width=8,
    )
    heads = ["preparation.query_norm.weight", "preparation.key_norm.weight"]
    layer = [
        "attention_norm.weight",
        "attention.query_key_value.weight",
        *(f"attention.{h}" for h in heads),
        "attention.preparation.smear.weight",
        "attention.out.weight",
        "cross_attention.norm.weight",
        "cross_attention.attention.query.weight",
        "cross_attention.attention.key_value.weight",
        *(f"cross_attention.attention.{h}" for h in heads),
        "cross_attention.attention.preparation.smear.weight",
        "cross_attention.attention.out.weight",
        "feed_forward_norm.weight",
        "feed_forward.up.weight",
        "feed_forward.down.weight",
    ]
    encoder_layer = [
        "attention_norm.weight",
        "attention.query_key_value.weight",
        *(f"attention.{h}" for h in heads),
        "attention.out.weight",
        "conditioning.norm.weight",
        "conditioning.chunk_norm.weight",
        "conditioning.attention.query.weight",
        "conditioning.attention.key_value.weight",
        *(f"conditioning.attention.{h}" for h in heads),
        "conditioning.attention.out.weight",
        "feed_forward_norm.weight",
        "feed_forward.up.weight",
        "feed_forward.down.weight",
    ]
    expected = {"embedding.weight", "norm.weight", "head.weight", "encoder.input.weight", "encoder.norm.weight"}
    expected |= {f"layers.0.{n}" for n in layer} | {f"encoder.layers.0.{n}" for n in encoder_layer}
    assert set(scrambled(config).state_dict()) == expected


def test_missing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError, match=r"config\.json: not found"):
        load_model(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ArtifactMissingError, match="weights not found"):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -7])
def test_truncated_weights(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactCorruptError, match="not a whole safetensors file") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model": {"widht": 3}}', '{"model": {"num_heads": 3}}'])
def test_corrupt_configuration(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ArtifactCorruptError) as caught:
        read_model_config(folder)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_attention_layers": (3,)}, r"unexpected \(layers\.1\.cross_attention"),
        ({"cross_attention_layers": (1, 2, 3)}, r"missing \(layers\.0\.cross_attention"),
        (
            {"ffn_width": 8},
            r"of another shape \(encoder\.layers\.0\.feed_forward\.down\.weight: expected \[16, 8\], found",
        ),
    ],
)
def test_weights_of_another_model(folder: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ArtifactMismatchError, match=message) as caught:
        load_weights(folder, scrambled(tiny(**changes)))
    assert "\n" not in str(caught.value)


def test_mismatch_leaves_the_model_untouched(folder: Path) -> None:
    model = scrambled(tiny(ffn_width=8), seed=5)
    before = model.embedding.weight.clone()
    with pytest.raises(ArtifactMismatchError):
        load_weights(folder, model)
    assert torch.equal(model.embedding.weight, before)


def test_altered_tensor_is_loaded_as_stored(folder: Path) -> None:
    """What is in the file is what the model has, not what initialisation left."""
    path = folder / "model.safetensors"
    state = load_file(path)
    state["norm.weight"] += 1
    save_file(state, path)
    assert torch.equal(load_model(folder).norm.weight, state["norm.weight"])


def test_failed_write_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "model.safetensors"
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("retro.model.weights.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        save_weights(path, scrambled(TINY, seed=9))
    assert path.read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_extra_may_not_replace_the_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'model' is taken"):
        save_model(tmp_path, scrambled(TINY), {"model": {}})


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("vocab_size", 10**12, "embedding.weight: expected"),
        ("vocab_size", 10**30, "too large"),
        ("num_layers", 10**9, "1000000000 layers"),
        ("norm_eps", 10**400, "norm_eps: expected float"),
    ],
)
def test_a_configuration_is_not_believed_before_the_weights_are_seen(
    folder: Path, field: str, value: int, words: str
) -> None:
    stored = json.loads((folder / "config.json").read_text())
    stored["model"][field] = value
    (folder / "config.json").write_text(json.dumps(stored))
    for load in (load_model, load_pretrained):
        with pytest.raises(ArtifactError, match=words) as caught:
            load(folder)
        assert "\n" not in str(caught.value)
