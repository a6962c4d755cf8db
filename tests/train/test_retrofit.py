"""Training that starts from a pretrained model: the base's loss at first, frozen decoders, resuming without it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from retro.artifacts.checkpoint_folders import latest_checkpoint, list_checkpoints
from retro.artifacts.fingerprint import sha256_file
from retro.artifacts.release import open_release
from retro.cli.train import main
from retro.config.errors import (
    ArtifactCorruptError,
    ArtifactMismatchError,
    ArtifactMissingError,
    ConfigError,
    RetroError,
)
from retro.config.loader import from_dict, load_config
from retro.config.model import ModelConfig
from retro.config.train import TrainConfig
from retro.model import RetroModel
from retro.model.huggingface import save_huggingface
from retro.model.pretrained import load_pretrained
from retro.model.retro import is_retrieval_parameter
from retro.train.run import train
from tests.train import releases
from tests.train.test_distributed import torchrun


@pytest.fixture(scope="module")
def gpt(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained GPT's run folder."""
    root = tmp_path_factory.mktemp("base")
    return train(releases.config(release, root, retro=False, name="gpt", steps=30, checkpoint_every=0)).folder


def settings(release: Path, root: Path, base: Path | str, **changes: Any) -> dict[str, Any]:
    """A retrofitted RETRO's run; `layers` are its cross-attention layers, other names fields of the run."""
    parts: dict[str, Any] = {"base": str(base), "cross_attention_layers": changes.pop("layers", [2])}
    if parts["cross_attention_layers"]:
        parts["encoder"] = {"num_layers": 1}
    values = releases.settings(release, root, name="retrofit", log_every=1, retrofit=parts)
    del values["model"]
    return {**values, **changes}


def run(*arguments: Any, **changes: Any) -> Path:
    return train(from_dict(TrainConfig, settings(*arguments, **changes))).folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    folder = latest_checkpoint(run / "checkpoints")
    assert folder is not None
    return load_file(folder / "model.safetensors")


def test_it_starts_with_the_loss_of_its_base_and_learns(release: Path, gpt: Path, tmp_path: Path):
    retro = run(release, tmp_path, gpt, steps=40, learning_rate=3e-2, warmup_steps=1)
    control = run(release, tmp_path, gpt, name="control", layers=[])
    rows, other = (releases.metrics(folder, "train") for folder in (retro, control))
    assert rows[0]["loss"] == other[0]["loss"], "the same batch, the same model: the same bits"
    assert rows[-1]["loss"] < rows[0]["loss"]
    before, after = weights(gpt), weights(retro)
    assert all(not torch.equal(after[name], tensor) for name, tensor in before.items())
    assert after["layers.1.cross_attention.gate"].item() != 0
    assert not load_pretrained(control).config.is_retro
    stored = load_config(TrainConfig, retro / "config.yaml")
    assert stored.model.cross_attention_layers == (2,)
    assert stored.model.width == 16
    # What was written is a configuration of the same run.
    assert main([str(retro / "config.yaml")]) == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_frozen_backbone_stays_bit_for_bit(release: Path, gpt: Path, tmp_path: Path, precision: str):
    folder = run(release, tmp_path, gpt, freeze_backbone=True, precision=precision, gradient_clip=0.1)
    before, after = weights(gpt), weights(folder)
    for name, tensor in after.items():
        if is_retrieval_parameter(name):
            assert name not in before
        else:
            assert torch.equal(tensor, before[name]), name
    latest = latest_checkpoint(folder / "checkpoints")
    assert latest is not None
    names = {name.rpartition(".")[0] for name in load_file(latest / "optimizer.safetensors")}
    assert names == {name for name in after if is_retrieval_parameter(name)}


def test_the_log_says_what_is_frozen(release: Path, gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    file = releases.write_yaml(tmp_path / "run.yaml", settings(release, tmp_path, gpt, freeze_backbone=True))
    assert main([str(file)]) == 0
    frozen = sum(p.numel() for p in load_pretrained(gpt).parameters())
    assert f"({frozen:,} of them frozen)" in capsys.readouterr().err


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_a_resumed_run_needs_no_base(release: Path, gpt: Path, tmp_path: Path, frozen: bool):
    base = tmp_path / "base"
    shutil.copytree(gpt, base)
    whole = run(release, tmp_path, base, freeze_backbone=frozen)
    cut = run(release, tmp_path, base, name="cut", freeze_backbone=frozen)
    shutil.rmtree(cut / "checkpoints" / "step_000008")
    shutil.rmtree(base)
    run(release, tmp_path, base, name="cut", freeze_backbone=frozen)
    assert [step for step, _ in list_checkpoints(cut / "checkpoints")] == [4, 8]
    for name in ("model.safetensors", "optimizer.safetensors"):
        found, expected = (sha256_file(r / "checkpoints" / "step_000008" / name) for r in (cut, whole))
        assert found == expected
    with pytest.raises(ArtifactMissingError, match=r"retrofit\.base.*other settings of the section retrofit"):
        run(release, tmp_path, base, name="cut", freeze_backbone=frozen, layers=[1, 2])
    with pytest.raises(ArtifactMissingError, match=r"retrofit\.base: .*no such"):
        run(release, tmp_path, base, name="new")


def test_init_from_is_not_needed_to_resume_either(release: Path, gpt: Path, tmp_path: Path):
    base = tmp_path / "base"
    shutil.copytree(gpt, base)
    values = releases.settings(release, tmp_path, name="second", init_from=str(base))
    del values["model"]
    folder = train(from_dict(TrainConfig, values)).folder
    shutil.rmtree(folder / "checkpoints" / "step_000008")
    shutil.rmtree(base)
    assert train(from_dict(TrainConfig, values)).state.step == 8


def test_another_base_is_another_run(release: Path, gpt: Path, tmp_path: Path):
    run(release, tmp_path, gpt)
    moved = tmp_path / "elsewhere"
    shutil.copytree(gpt, moved)
    run(release, tmp_path, moved)  # the same content: finished, nothing to do
    other = train(releases.config(release, tmp_path, retro=False, name="other", seed=1)).folder
    with pytest.raises(ArtifactMismatchError, match=r"weights of init_from or retrofit\.base: checkpoint"):
        run(release, tmp_path, other)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"init_from": "x"}, ConfigError, "retrofit: excludes init_from"),
        ({"freeze_backbone": True, "layers": []}, ConfigError, "freeze_backbone: a plain GPT"),
        ({"model": {"width": 32}}, ConfigError, r"describes another \(in width\); leave the section model out"),
        ({"layers": [3]}, ConfigError, "layer 3 does not exist"),
        ({"retrofit": {"base": "x", "cross_attention_layers": [1], "width": 3}}, ConfigError, "unknown key .*width"),
        ({"retrofit": {"base": "x"}}, ConfigError, "cross_attention_layers.* is required"),
        ({"activation_checkpointing": ["encoder"], "layers": []}, ConfigError, "a plain GPT has no encoder"),
    ],
    ids=["init_from", "frozen-gpt", "model", "layer", "decoder-field", "no-layers", "checkpointing"],
)
def test_refusals(
    changes: dict[str, Any], error: type[RetroError], message: str, release: Path, gpt: Path, tmp_path: Path
):
    with pytest.raises(error, match=message):
        run(release, tmp_path, gpt, **changes)
    assert not (tmp_path / "retrofit").exists()


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_damaged_base(damage: str, release: Path, gpt: Path, tmp_path: Path):
    base = tmp_path / "base"
    shutil.copytree(gpt, base)
    path = base / "checkpoints" / "step_000030" / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-5] if damage == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ArtifactCorruptError, match=r"model\.safetensors: expected"):
        run(release, tmp_path, base)


def test_freezing_a_gpt_that_is_named_by_init_from_or_made_anew_is_refused(release: Path, gpt: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="freeze_backbone"):
        releases.config(release, tmp_path, retro=False, freeze_backbone=True)
    values = releases.settings(release, tmp_path, init_from=str(gpt), freeze_backbone=True)
    del values["model"]
    with pytest.raises(ConfigError, match="freeze_backbone: a plain GPT"):
        train(from_dict(TrainConfig, values))


class TestHuggingFaceBase:
    def folder(self, release: Path, root: Path, vocabulary: int = 300, **changes: Any) -> Path:
        """A Llama with the release's sentencepiece model beside it."""
        torch.manual_seed(3)
        config = {"vocab_size": vocabulary, "width": 16, "num_layers": 2, "num_heads": 2, "ffn_width": 24, **changes}
        tokenizer = open_release(release).tokenizer / "tokenizer.model"
        save_huggingface(RetroModel(ModelConfig(**config)), root, files={"tokenizer.model": tokenizer.read_bytes()})
        return root

    def fitting(self, release: Path, root: Path, base: Path, **changes: Any) -> Path:
        values = settings(release, root, base, **changes)
        values["retrofit"]["chunk_length"] = releases.CHUNK
        return train(from_dict(TrainConfig, values)).folder

    def test_it_is_trained_with_its_padded_vocabulary(self, release: Path, tmp_path: Path):
        base = self.folder(release, tmp_path / "base", vocabulary=320)
        frozen = self.fitting(release, tmp_path, base, freeze_backbone=True)
        model, theirs = load_pretrained(frozen), load_pretrained(base)
        assert model.config.vocab_size == 320
        assert torch.equal(model.embedding.weight, theirs.embedding.weight)
        assert releases.metrics(frozen, "validation")[-1]["bits_per_byte"] > 0

    def test_one_token_too_few(self, release: Path, tmp_path: Path):
        base = self.folder(release, tmp_path / "base", vocabulary=299)
        with pytest.raises(ConfigError, match=r"model\.vocab_size: .* have 299 tokens, the release's tokenizer 300"):
            self.fitting(release, tmp_path, base)

    def test_another_tokenizer(self, release: Path, tmp_path: Path):
        base = self.folder(release, tmp_path / "base")
        (base / "tokenizer.model").write_bytes(b"other")
        with pytest.raises(ArtifactMismatchError, match=r"tokenizer\.model: .*tokenizer\.existing\.path="):
            self.fitting(release, tmp_path, base)
        (base / "tokenizer.model").unlink()
        with pytest.raises(ArtifactMissingError, match=r"tokenizer\.model: not found"):
            self.fitting(release, tmp_path, base)

    def test_sequences_longer_than_the_learned_positions(self, release: Path, tmp_path: Path):
        learned = {"positions": "learned", "max_positions": 31, "norm": "layernorm", "ffn": "gelu_tanh", "bias": True}
        base = self.folder(release, tmp_path / "base", **learned)
        with pytest.raises(ConfigError, match="sequence_length: expected at most the model's 31 learned positions"):
            self.fitting(release, tmp_path, base)

    def test_init_from_says_where_it_belongs(self, release: Path, tmp_path: Path):
        base = self.folder(release, tmp_path / "base")
        values = releases.settings(release, tmp_path, init_from=str(base))
        del values["model"]
        with pytest.raises(ArtifactMismatchError, match=r"give it as retrofit\.base"):
            train(from_dict(TrainConfig, values))


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_two_processes_give_the_curve_of_one(release: Path, gpt: Path, tmp_path: Path, frozen: bool):
    one = run(release, tmp_path, gpt, name="one", freeze_backbone=frozen)
    values = settings(release, tmp_path, gpt, name="two", freeze_backbone=frozen, micro_batch=1)
    torchrun(releases.write_yaml(tmp_path / "two.yaml", values))
    two = tmp_path / "two"
    for a, b in zip(releases.metrics(one, "train"), releases.metrics(two, "train"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-4)
    before, after = weights(gpt), weights(two)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()) == frozen
