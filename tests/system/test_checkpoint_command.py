"""`retro checkpoint` on what two processes with sharded weights have written, and what then reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from retro.artifacts.checkpoint_folders import list_checkpoints
from retro.cli.main import main
from retro.inference.checkpoint import open_checkpoint
from retro.model.pretrained import load_pretrained
from retro.model.tensor_files import open_tensor_files
from tests.train import releases
from tests.train.conftest import release as release
from tests.train.ranks import run_ranks

pytestmark = pytest.mark.slow
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "eval"


@pytest.fixture(scope="module")
def run(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps with FSDP on two processes; checkpoints after 4 and 8."""
    root = tmp_path_factory.mktemp("sharded")
    values = releases.settings(release, root, parallel={"strategy": "fsdp"}, keep_best=True)
    file, log = releases.write_yaml(root / "run.yaml", values), root / "log.txt"
    assert run_ranks(file, 2, log) == [0, 0], log.read_text()
    return root / "run"


def command(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def bits_per_byte(checkpoint: Path, release: Path, output: Path) -> float:
    """Of the validation split, through `retro eval`."""
    command(
        "eval", CONFIGS / "perplexity.yaml", f"checkpoint={checkpoint}", f"release={release}", "split=valid",
        "max_sequences=4", "modes=[on]", f"output={output}", "device=cpu", "sequence_length=32", "num_neighbors=2",
    )  # fmt: skip
    found = _find(json.loads((output / "eval" / "perplexity-valid" / "results.json").read_text()), "bits_per_byte")
    assert isinstance(found, float)
    return found


def _find(value: object, name: str) -> object:
    """The first entry of that name, however deep."""
    if isinstance(value, dict):
        if name in value:
            return value[name]
        return next((found for item in value.values() if (found := _find(item, name)) is not None), None)
    return None


def test_inspect(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("checkpoint", "inspect", run, "--verify", "--json")
    found = json.loads(capsys.readouterr().out)
    assert [row["status"] for row in found["rows"]] == ["ok", "ok"]
    assert found["newest"] == "step_000008" and found["best"] in ("step_000004", "step_000008")
    newest = found["rows"][-1]["description"]
    assert newest["writers"] == newest["data_processes"] == 2
    assert newest["state"]["samples"] == 32
    assert newest["weights"] == open_checkpoint(run).fingerprint
    assert newest["sets"][0]["form"] == "pieces"
    command("checkpoint", "inspect", run / "checkpoints" / "best")
    assert f"{found['best']}: ok" in capsys.readouterr().out


def test_converted_it_is_the_same_and_a_run_goes_on_from_it(run: Path, release: Path, tmp_path: Path) -> None:
    four = run / "checkpoints" / "step_000004"
    again = tmp_path / "again" / "checkpoints" / "step_000004"
    command("checkpoint", "convert", f"checkpoint={four}", f"output={again}", "files=1")
    assert {path.name for path in again.iterdir()} >= {"model.safetensors", "optimizer.safetensors"}
    for stem in ("model", "optimizer"):
        one, many = open_tensor_files(again, stem), open_tensor_files(four, stem)
        assert one.names == many.names and one.index is None and len(many.files) == 2
        assert all(torch.equal(one.read(name), many.read(name)) for name in one.names)
    # In pieces again, three this time, a run of one process and one of two go on from them alike.
    other = tmp_path / "other" / "checkpoints" / "step_000004"
    command("checkpoint", "convert", f"checkpoint={again}", f"output={other}", "files=3")
    assert open_checkpoint(four).fingerprint == open_checkpoint(other).fingerprint
    for name, world, parallel in (("again", 1, {}), ("other", 2, {"strategy": "fsdp"})):
        values = releases.settings(release, tmp_path, name=name, parallel=parallel, keep_best=True)
        file, log = releases.write_yaml(tmp_path / f"{name}.yaml", values), tmp_path / f"{name}.txt"
        assert run_ranks(file, world, log) == [0] * world, log.read_text()
        assert "resuming at step 4" in log.read_text()
    states = [load_pretrained(folder).state_dict() for folder in (run, tmp_path / "other", tmp_path / "again")]
    for name, tensor in states[0].items():
        assert torch.equal(states[1][name], tensor)  # the same processes: the same bits
        torch.testing.assert_close(states[2][name], tensor, rtol=1e-3, atol=1e-4)


def test_every_reader_reads_pieces(run: Path, release: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    command("checkpoint", "convert", f"checkpoint={run}", f"output={one}")
    assert bits_per_byte(run, release, tmp_path / "a") == bits_per_byte(one, release, tmp_path / "b")
    for number, path in enumerate((run, one)):
        command("export", f"checkpoint={path}", f"output={tmp_path / f'whole-{number}'}", "format=retro")
    weights = [(tmp_path / f"whole-{number}" / "model.safetensors").read_bytes() for number in range(2)]
    assert weights[0] == weights[1]


def test_an_average_is_evaluated(run: Path, release: Path, tmp_path: Path) -> None:
    mean = tmp_path / "mean"
    command("checkpoint", "average", f"run={run}", "last=2", f"output={mean}", "weights=[1,3]")
    steps = [load_pretrained(folder).state_dict() for _, folder in list_checkpoints(run / "checkpoints")]
    for name, tensor in load_pretrained(mean).state_dict().items():
        assert torch.equal(tensor, (0.25 * steps[0][name].double() + 0.75 * steps[1][name].double()).float())
    assert bits_per_byte(mean, release, tmp_path / "eval") > 0


@pytest.mark.parametrize(
    ("world", "parallel"),
    [(1, {}), (2, {"strategy": "fsdp"}), (2, {"tensor": 2}), (4, {"strategy": "fsdp", "tensor": 2})],
    ids=["one", "fsdp", "tensor", "both"],
)
def test_processes_that_share_the_weights_begin_with_them(
    run: Path, release: Path, tmp_path: Path, world: int, parallel: dict[str, object]
) -> None:
    """Each takes its part of what two others have written: after a step of no length it is all there again."""
    values = releases.settings(release, tmp_path, name="next", init_from=str(run), parallel=parallel)
    still = {"steps": 1, "warmup_steps": 0, "learning_rate": 1e-30, "min_learning_rate": 1e-30, "validate_every": 0}
    del values["model"]
    file, log = releases.write_yaml(tmp_path / "next.yaml", {**values, **still}), tmp_path / "log"
    assert run_ranks(file, world, log) == [0] * world, log.read_text()
    expected, found = load_pretrained(run).state_dict(), load_pretrained(tmp_path / "next").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    manifest = json.loads((tmp_path / "next" / "checkpoints" / "step_000001" / "manifest.json").read_text())
    fingerprint = open_checkpoint(run).fingerprint
    assert manifest["config"]["init_from"] == fingerprint == open_checkpoint(tmp_path / "next").fingerprint
