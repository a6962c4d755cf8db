"""The whole way with somebody else's model: its tokenizer, retrieval for it, evaluation, generation, export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from retro.cli.main import main
from retro.config.model import ModelConfig
from retro.model import RetroModel
from retro.model.huggingface import save_huggingface
from tests.data.test_tokenizer import byte_level
from tests.system.workplace import CHUNK, SEQUENCE, prep_settings, write_config, write_corpus


def pretrained(folder: Path) -> Path:
    """A small GPT-NeoX with a padded vocabulary and its tokenizer, as a hub gives them."""
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=384, width=32, num_layers=2, num_heads=2, ffn="gelu", norm="layernorm", bias=True, block="parallel",
        rotary_fraction=0.25, tie_embeddings=False,
    )  # fmt: skip
    tokenizer = byte_level()
    assert tokenizer.get_vocab_size() < 384
    files = {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}).encode(),
    }
    save_huggingface(RetroModel(config), folder, files=files)
    return folder


@pytest.mark.slow
def test_a_hugging_face_model_gets_retrieval(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base = pretrained(tmp_path / "base")
    settings = prep_settings(write_corpus(tmp_path / "corpus", 60), tmp_path / "prep")
    settings["tokenizer"] = {"kind": "huggingface", "existing": {"path": str(base)}}
    for section in ("questions", "question_sequences"):
        del settings[section]
    assert main(["prep", "run", str(write_config(tmp_path / "prep.yaml", settings))]) == 0
    release = tmp_path / "prep" / "release.json"
    training = {
        "name": "retrofit",
        "release": str(release),
        "run_root": str(tmp_path / "runs"),
        "retrofit": {"base": str(base), "cross_attention_layers": [1, 2], "chunk_length": CHUNK},
        "freeze_backbone": True,
        "sequence_length": SEQUENCE,
        "global_batch": 4,
        "steps": 6,
        "warmup_steps": 1,
        "validate_every": 3,
        "device": "cpu",
    }
    assert main(["train", str(write_config(tmp_path / "train.yaml", training))]) == 0
    run = tmp_path / "runs" / "retrofit"
    assert main(["eval", "configs/eval/smoke_perplexity.yaml", f"checkpoint={run}", "max_sequences=4"]) == 0
    modes = json.loads((run / "eval" / "perplexity-test" / "results.json").read_text())
    assert modes
    assert main(["generate", f"checkpoint={run}", "prompt=sum of", "max_new_tokens=40", "device=cpu"]) == 0
    assert main(["export", f"checkpoint={run}", f"output={tmp_path / 'out'}"]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    capsys.readouterr()
    # A corpus that was prepared with another tokenizer is no corpus for this model.
    settings = prep_settings(tmp_path / "corpus", tmp_path / "other")
    assert main(["prep", "run", str(write_config(tmp_path / "other.yaml", settings))]) == 0
    other = tmp_path / "other" / "release.json"
    assert main(["train", str(tmp_path / "train.yaml"), f"release={other}", "name=wrong"]) == 3
    assert f"tokenizer.existing.path={base}" in capsys.readouterr().err
