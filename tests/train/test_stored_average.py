"""`retro checkpoint average`: the mean of weights, as a model folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from retro.artifacts.manifest import describe_file
from retro.cli.main import main
from retro.config.checkpoints import AverageConfig
from retro.config.errors import (
    ArtifactCorruptError,
    ArtifactMismatchError,
    ArtifactMissingError,
    ConfigError,
)
from retro.model.pretrained import load_pretrained, open_pretrained
from retro.train.checkpointing.save import save_checkpoint
from retro.train.stored.average import average_checkpoints
from retro.train.stored.convert import convert_checkpoint
from tests.train.spread import CONFIG, IDENTITY, make, resumed


def save(folder: Path, step: int, seed: int | None = None, **changes: Any) -> Path:
    """A checkpoint of another model at each step."""
    model, optimizer = make(step if seed is None else seed, config=changes.pop("config", CONFIG))
    return save_checkpoint(
        folder / "checkpoints",
        model=model,
        optimizer=optimizer,
        resumed=resumed(step),
        identity=dataclasses.replace(IDENTITY, **changes),
        keep=99,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (1, 2, 3):
        save(tmp_path / "run", step)
    return tmp_path / "run"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def steps(run: Path, *numbers: int) -> list[Path]:
    return [run / "checkpoints" / f"step_{number:06d}" for number in numbers]


def test_the_mean_in_float64_stored_in_float32(run: Path, tmp_path: Path) -> None:
    paths = steps(run, 1, 2, 3)
    # One form does not matter: the second is in pieces.
    convert_checkpoint(paths[1], tmp_path / "pieces", 2)
    average_checkpoints([paths[0], tmp_path / "pieces", paths[2]], tmp_path / "mean", (1, 2, 5))
    parts = [weights(path) for path in paths]
    found = weights(tmp_path / "mean")
    assert found.keys() == parts[0].keys()
    for name, tensor in found.items():
        expected = sum(share * part[name].double() for share, part in zip((1 / 8, 2 / 8, 5 / 8), parts, strict=True))
        assert tensor.dtype == torch.float32 and torch.equal(tensor, expected.float())
    config = json.loads((tmp_path / "mean" / "config.json").read_text())
    own = json.loads((paths[0] / "config.json").read_text())
    assert {name: value for name, value in config.items() if name != "average"} == {
        name: value for name, value in own.items() if name != "step"
    }
    assert config["average"] == [
        {
            "run": folder,
            "checkpoint": name,
            "step": step,
            "fingerprint": open_pretrained(path).fingerprint(),
            "weight": weight,
        }
        for folder, name, step, path, weight in (
            ("run", "step_000001", 1, paths[0], 0.125),
            (None, "pieces", 2, paths[1], 0.25),
            ("run", "step_000003", 3, paths[2], 0.625),
        )
    ]
    assert sorted(path.name for path in (tmp_path / "mean").iterdir()) == ["config.json", "model.safetensors"]
    model = load_pretrained(tmp_path / "mean")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in found.items())


def test_the_mean_of_equal_weights_is_those_weights(run: Path, tmp_path: Path) -> None:
    """Also with shares that no binary fraction is."""
    for name in ("a", "b", "c"):
        shutil.copytree(steps(run, 1)[0], tmp_path / name)
    average_checkpoints([tmp_path / name for name in ("a", "b", "c")], tmp_path / "mean")
    assert (tmp_path / "mean" / "model.safetensors").read_bytes() == (tmp_path / "a" / "model.safetensors").read_bytes()


def test_the_newest_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "average", f"run={run}", "last=2", f"output={tmp_path / 'a'}", "weights=[1,3]"]) == 0
    lines = capsys.readouterr().out.splitlines()
    count = sum(p.numel() for p in load_pretrained(run).parameters())
    assert lines[0] == f"{tmp_path / 'a'}: {count:,} parameters, float32, the mean of 2 checkpoints"
    assert [line.split()[:3] for line in lines[1:]] == [
        ["0.2500", "run", "step_000002"],
        ["0.7500", "run", "step_000003"],
    ]
    listed = ",".join(str(path) for path in steps(run, 2, 3))
    arguments = ["average", f"checkpoints=[{listed}]", f"output={tmp_path / 'b'}", "weights=[0.25,0.75]"]
    assert main(["checkpoint", *arguments]) == 0
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert main(["checkpoint", *arguments]) == 2
    assert "exists already" in capsys.readouterr().err


def test_checkpoints_that_differ_in_the_release_only(run: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other", 5, release="release-2")
    average_checkpoints([run, other], tmp_path / "mean")
    config = json.loads((tmp_path / "mean" / "config.json").read_text())
    assert "release" not in config and config["sequence_length"] == 4


def test_what_has_no_mean(run: Path, tmp_path: Path) -> None:
    def refused(error: type[Exception], message: str, *paths: Path) -> None:
        with pytest.raises(error, match=message) as caught:
            average_checkpoints(paths, tmp_path / "mean")
        assert "\n" not in str(caught.value) and not (tmp_path / "mean").exists()

    one, two = steps(run, 1, 2)
    wider = save(tmp_path / "wider", 1, config=dataclasses.replace(CONFIG, ffn_width=12))
    refused(ArtifactMismatchError, r"found another ffn_width \(12 instead of 10\); only checkpoints of one", one, wider)
    foreign = save(tmp_path / "foreign", 1, tokenizer="tokenizer-2")
    refused(ArtifactMismatchError, "expected the tokenizer tokenizer-1 of .*, found tokenizer-2; only", one, foreign)
    refused(ConfigError, "step_000003: is given twice", run, *steps(run, 3))
    refused(ArtifactMissingError, "checkpoints: .*nowhere: no such run", one, tmp_path / "nowhere")
    path = two / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    refused(ArtifactCorruptError, r"step_000002/model\.safetensors: expected sha256", one, two)


def rewrite(folder: Path, edit: Any) -> None:
    """Change tensors of a checkpoint, manifest included."""
    path = folder / "model.safetensors"
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = [describe_file(path) if f["name"] == path.name else f for f in manifest["files"]]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_numbers_that_are_not_finite_or_no_floats(run: Path, tmp_path: Path) -> None:
    one, two, three = steps(run, 1, 2, 3)
    rewrite(two, lambda tensors: {**tensors, "norm.weight": torch.full_like(tensors["norm.weight"], float("nan"))})
    with pytest.raises(ArtifactCorruptError, match=r"step_000002: norm\.weight holds numbers that are not finite"):
        average_checkpoints([one, two], tmp_path / "mean")
    rewrite(three, lambda tensors: {**tensors, "norm.weight": tensors["norm.weight"].int()})
    with pytest.raises(ArtifactMismatchError, match=r"step_000003: norm\.weight: expected floating-point numbers"):
        average_checkpoints([one, three], tmp_path / "mean")
    assert not (tmp_path / "mean").exists() and not list(tmp_path.glob(".mean*"))


def test_a_run_with_too_few(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "average", f"run={run}", "last=4", f"output={tmp_path / 'a'}"]) == 3
    assert "expected 4 finished checkpoints or more, found 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "checkpoints: expected 2 or more, found 0"),
        ({"checkpoints": ("a",)}, "checkpoints: expected 2 or more, found 1"),
        ({"checkpoints": ("a", "")}, r"checkpoints\[1\]: expected a path, found an empty text"),
        ({"checkpoints": ("a", "b"), "last": 2}, "last: is read with run=FOLDER only"),
        ({"checkpoints": ("a", "b"), "run": "r", "last": 2}, "checkpoints: is not read with run"),
        ({"run": "r"}, "last: is required with run=r"),
        ({"run": "r", "last": 1}, "last: expected 2 or more, found 1"),
        ({"run": ""}, "run: expected a path, found an empty text"),
        ({"run": "r", "last": 3, "weights": (1.0, 2.0)}, "weights: expected 3, one for each checkpoint, found 2"),
        (
            {"checkpoints": ("a", "b"), "weights": (1.0, 0.0)},
            r"weights\[1\]: expected a finite number above 0, found 0",
        ),
        (
            {"checkpoints": ("a", "b"), "weights": (float("inf"), 1.0)},
            r"weights\[0\]: expected a finite number above 0, found inf",
        ),
    ],
)
def test_the_configuration(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        AverageConfig(output="out", **fields)
