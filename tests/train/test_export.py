"""`retro export`: a trained run as a folder that transformers opens, and that a run can start from again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from retro.artifacts.release import open_release
from retro.cli.main import main
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError
from retro.config.loader import from_dict
from retro.config.train import TrainConfig
from retro.data.tokenizer import open_tokenizer
from retro.model.pretrained import load_pretrained, save_pretrained
from retro.train.run import train
from tests.model.huggingface.tiny_models import VOCABULARY, save
from tests.train import releases


@pytest.fixture(scope="module")
def runs(release: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trained runs of a GPT and a RETRO, and of a GPT that no Hugging Face architecture expresses."""
    root = tmp_path_factory.mktemp("runs")
    found = {}
    for name in ("gpt", "retro", "own"):
        values = releases.settings(release, root, retro=name == "retro", name=name)
        values["model"]["smear_keys"] = name == "own"
        found[name] = train(from_dict(TrainConfig, values)).folder
    return found


def export(*arguments: str) -> int:
    return main(["export", *arguments])


def opened(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers", reason="opens the folder with the package transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", ["gpt", "retro"])
def test_a_run_is_opened_by_transformers(name: str, runs, release: Path, tmp_path: Path, capsys):
    assert export(f"checkpoint={runs[name]}", f"output={tmp_path / 'out'}") == 0
    printed = capsys.readouterr().out
    assert "LlamaForCausalLM" in printed
    assert ("left out: " in printed) == (name == "retro")
    theirs, tokenizer = opened(tmp_path / "out")
    ours, text = load_pretrained(runs[name]), "a tensor of the same shape\n"
    own = open_tokenizer(open_release(release).tokenizer)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == [own.bos_id, *own.encode(text)]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, rtol=0, atol=1e-5)
    assert theirs.config.max_position_embeddings == tokenizer.model_max_length == releases.CHUNK * 4
    assert (theirs.generation_config.bos_token_id, theirs.config.eos_token_id) == (own.bos_id, own.eos_id)


def test_what_is_exported_can_be_retrofitted_and_exported_again(runs, release: Path, tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert export(f"checkpoint={runs['gpt']}", f"output={first}") == 0
    values = releases.settings(release, tmp_path, name="retrofit", freeze_backbone=True)
    del values["model"]
    parts = {"base": str(first), "cross_attention_layers": [1, 2], "chunk_length": releases.CHUNK}
    run = train(from_dict(TrainConfig, {**values, "retrofit": parts})).folder
    assert export(f"checkpoint={run}", f"output={second}") == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    files = [sorted(path.name for path in folder.iterdir()) for folder in (first, second)]
    assert files[0] == files[1]


def test_the_whole_model(runs, tmp_path: Path):
    assert export(f"checkpoint={runs['retro']}", f"output={tmp_path / 'out'}", "format=retro") == 0
    ours, again = load_pretrained(runs["retro"]), load_pretrained(tmp_path / "out")
    assert again.config == ours.config
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in ours.state_dict().items())
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert stored["sequence_length"] == releases.CHUNK * 4
    assert stored["tokenizer"]["fingerprint"]


def test_a_whole_model_is_a_base_too(runs, release: Path, tmp_path: Path):
    assert export(f"checkpoint={runs['gpt']}", f"output={tmp_path / 'out'}", "format=retro") == 0
    values = releases.settings(release, tmp_path, name="control")
    del values["model"]
    values["retrofit"] = {"base": str(tmp_path / "out"), "cross_attention_layers": []}
    assert train(from_dict(TrainConfig, values)).state.step == 8


def test_options(runs, release: Path, tmp_path: Path, capsys):
    checkpoint = tmp_path / "alone"
    (runs["gpt"] / "checkpoints" / "step_000008").rename(checkpoint)
    try:
        common = [f"checkpoint={checkpoint}", "dtype=bfloat16"]
        assert export(*common, f"output={tmp_path / 'bare'}") == 0
        assert "no tokenizer, since no release is known: release=PATH adds it" in capsys.readouterr().out
        assert not (tmp_path / "bare" / "tokenizer.json").exists()
        assert export(*common, f"output={tmp_path / 'full'}", f"release={release}", "max_positions=99") == 0
        theirs, _ = opened(tmp_path / "full")
        assert theirs.dtype == torch.bfloat16
        assert theirs.config.max_position_embeddings == 99
    finally:
        checkpoint.rename(runs["gpt"] / "checkpoints" / "step_000008")


@pytest.mark.parametrize(
    ("name", "options", "code", "message"),
    [
        ("own", [], 2, "but not with smear_keys: true"),
        ("gpt", ["output=."], 2, "exists already"),
        ("gpt", ["output="], 2, "output: expected a path"),
        ("gpt", ["dtype=int8"], 2, "dtype: expected one of"),
        ("gpt", ["max_positions=0"], 2, "max_positions"),
        ("gpt", ["format=retro", "dtype=float16"], 2, "dtype: is not read with format 'retro'"),
        ("gpt", ["checkpoint=nowhere"], 3, "checkpoint: nowhere: no such run"),
        ("gpt", ["release=nowhere"], 3, "nowhere"),
        ("gpt", ["chekpoint=x"], 2, "did you mean 'checkpoint'"),
    ],
    ids=["inexpressible", "exists", "empty", "dtype", "positions", "unread", "nowhere", "release", "typo"],
)
def test_refusals_are_one_line(name, options, code, message, runs, tmp_path: Path, capsys):
    given = {"checkpoint": f"checkpoint={runs[name]}", "output": f"output={tmp_path / 'out'}"}
    given.update({option.partition("=")[0]: option for option in options})
    capsys.readouterr()
    assert export(*given.values()) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []


def test_another_tokenizer_is_not_written_along(release: Path, tmp_path: Path, capsys):
    save("gpt2", tmp_path / "theirs")
    assert export(f"checkpoint={tmp_path / 'theirs'}", f"output={tmp_path / 'out'}", f"release={release}") == 3
    assert "tokenizer.model: not found" in capsys.readouterr().err
    model = load_pretrained(tmp_path / "theirs")
    save_pretrained(model, tmp_path / "own")
    assert export(f"checkpoint={tmp_path / 'own'}", f"output={tmp_path / 'out'}", f"release={release}") == 3
    assert f"at most the model's {VOCABULARY} tokens, found {releases.VOCABULARY}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dtype_that_cannot_hold_the_weights(tmp_path: Path, capsys):
    save("llama", tmp_path / "theirs")
    model = load_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        model.norm.weight[3] = 1e5
    save_pretrained(model, tmp_path / "own")
    arguments = f"checkpoint={tmp_path / 'own'}", f"output={tmp_path / 'out'}"
    assert export(*arguments, "dtype=float16") == 2
    assert "float16 cannot hold the numbers of norm.weight (up to 1e+05)" in capsys.readouterr().err
    assert export(*arguments, "dtype=bfloat16") == 0


def test_weights_that_are_no_numbers(runs, tmp_path: Path):
    model = load_pretrained(runs["gpt"])
    with torch.no_grad():
        model.layers[1].feed_forward.up.weight[0, 0] = float("nan")
    save_pretrained(model, tmp_path / "own")
    with pytest.raises(
        ArtifactCorruptError, match=r"layers\.1\.feed_forward\.up\.weight holds numbers that are not fin"
    ):
        load_pretrained(tmp_path / "own")


@pytest.mark.parametrize(("section", "remedy"), [("model", "model"), ("retrofit", "retrofit")])
def test_chunks_of_another_length_are_told_with_the_field_to_set(section, remedy, runs, release: Path, tmp_path: Path):
    values = releases.settings(release, tmp_path)
    if section == "retrofit":
        del values["model"]
        values["retrofit"] = {"base": str(runs["gpt"]), "cross_attention_layers": [1], "chunk_length": 16}
    else:
        values["model"]["chunk_length"] = 16
    with pytest.raises(ArtifactMismatchError, match=f"set {remedy}.chunk_length=8, or prepare"):
        train(from_dict(TrainConfig, values))
