"""`retro checkpoint inspect`: what is there, and whether it is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retro.cli.main import main
from retro.model import RetroModel
from retro.train.checkpointing.save import save_checkpoint
from retro.train.stored.convert import convert_checkpoint
from tests.train.spread import CONFIG, IDENTITY, make, resumed


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Checkpoints of steps 1 to 3, the second the best."""
    folder = tmp_path / "run" / "checkpoints"
    for step in (1, 2, 3):
        model, optimizer = make(step)
        save_checkpoint(folder, model=model, optimizer=optimizer, resumed=resumed(step, 2), identity=IDENTITY, keep=9)
    (folder / "best").symlink_to("step_000002")
    return tmp_path / "run"


def inspect(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], list[str]]:
    code = main(["checkpoint", "inspect", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out.splitlines(), printed.err.splitlines()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_a_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run / "checkpoints" / "step_000002"
    code, lines, errors = inspect(capsys, folder)
    assert code == 0 and errors == []
    assert lines[0] == f"{folder}: ok, sizes compared (--verify: checksums too)"
    found = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[1:]}
    total = sum(p.numel() for p in RetroModel(CONFIG).parameters())
    assert found["step"] == "2" and found["samples"] == "8" and found["tokens"] == "200"
    assert found["release"] == "release-1" and found["tokenizer"] == "tokenizer-1"
    assert found["parameters"].startswith(f"{total:,} (embedding 42, decoder ")
    assert found["written"] == "by 1 process(es)"
    assert found["generators"] == "of 2 process(es) with data of their own"
    assert found["callback"] == 'metrics: {"x": 0.3333333333333333}'
    tensors = len(RetroModel(CONFIG).state_dict())
    assert found["model"].startswith(f"{tensors} float32; ") and found["model"].endswith(" in one file")
    assert found["optimizer"].startswith(f"{3 * tensors} float32; ")
    assert "model.safetensors" in found and "optimizer.safetensors" in found


def test_the_same_checkpoint_in_pieces(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run / "checkpoints" / "step_000002"
    convert_checkpoint(folder, tmp_path / "pieces", 3)
    one = json.loads("\n".join(inspect(capsys, folder, "--json", "--verify")[1]))
    many = json.loads("\n".join(inspect(capsys, tmp_path / "pieces", "--json", "--verify")[1]))
    assert (one["writers"], many["writers"]) == (1, 3)
    assert [s["form"] for s in one["sets"]] == ["one file"] * 2 and [s["form"] for s in many["sets"]] == ["pieces"] * 2
    assert [[len(s["files"]) for s in found["sets"]] for found in (one, many)] == [[1, 1], [4, 4]]
    for found in (one, many):
        for name in ("folder", "writers", "bytes"):
            del found[name]
        for tensors in found["sets"]:
            del tensors["form"], tensors["files"]
    assert one == many and one["weights"] and one["problems"] == []
    light = json.loads("\n".join(inspect(capsys, tmp_path / "pieces", "--json")[1]))
    assert light["weights"] is None and light["verified"] is False  # it would have to read them all
    assert inspect(capsys, tmp_path / "pieces")[0] == 0


def test_best_is_the_checkpoint_that_it_points_to(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, lines, _ = inspect(capsys, run / "checkpoints" / "best")
    assert lines[0].startswith(f"{run / 'checkpoints' / 'step_000002'}: ok")


def test_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, errors = inspect(capsys, run)
    assert code == 0 and errors == []
    assert lines[0] == f"{run}: 3 checkpoint(s), sizes compared (--verify: checksums too)"
    rows = [line.split() for line in lines[2:]]
    assert [row[0] for row in rows] == ["step_000001", "step_000002", "step_000003"]
    assert [row[1:3] for row in rows] == [["4", "100"], ["8", "200"], ["12", "300"]]
    assert [line.split("  ")[-1] for line in lines[2:]] == ["ok", "ok, best", "ok, newest"]


def test_the_folder_of_checkpoints_is_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(capsys, run / "checkpoints") == inspect(capsys, run)


def test_a_run_with_what_is_not_whole(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run / "checkpoints"
    (folder / "step_000003" / "manifest.json").unlink()
    (folder / ".step_000004.tmp-abcd").mkdir()
    code, lines, errors = inspect(capsys, run)
    assert code == 0  # the run goes on from step 2, as it should
    assert [line.split("  ")[-1] for line in lines[2:5]] == ["ok", "ok, newest, best", "unfinished"]
    assert lines[5].startswith("  .step_000004.tmp-abcd: being written, or left by a process that was killed")
    assert errors == [f"{folder / 'step_000003'}: no manifest.json, so it is unfinished and nothing reads it"]
    flip(folder / "step_000002" / "optimizer.safetensors")
    assert inspect(capsys, run)[0] == 0  # sizes do not tell
    code, lines, errors = inspect(capsys, run, "--verify")
    assert code == 3 and lines[0].endswith("all checksums compared")
    assert [line.split("  ")[-1] for line in lines[2:5]] == ["ok", "damaged, newest, best", "unfinished"]
    assert errors[0].startswith(f"{folder / 'step_000002' / 'optimizer.safetensors'}: expected sha256 ")
    (folder / "step_000001" / "manifest.json").write_text("[" * 100_000)
    code, lines, errors = inspect(capsys, run)
    assert code == 3 and lines[2].endswith("damaged") and "not a readable manifest" in errors[0]
    found = json.loads("\n".join(inspect(capsys, run, "--json")[1]))
    assert [row["status"] for row in found["rows"]] == ["damaged", "ok", "unfinished"]
    assert (found["newest"], found["best"]) == ("step_000002", "step_000002")


def test_a_link_to_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = run / "checkpoints" / "best"
    link.unlink()
    link.symlink_to("step_000009")
    code, _, errors = inspect(capsys, run)
    assert code == 3
    assert errors == [f"{link}: points to step_000009, no finished checkpoint; the run mends it when it goes on"]


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("edit", "name", "message"),
    [
        (remove, "optimizer.safetensors", "recorded in the manifest but missing"),
        (remove, "state.json", "recorded in the manifest but missing"),
        (truncate, "model.safetensors", "bytes, found"),
        (truncate, "rng.safetensors", "bytes, found"),
        (truncate, "config.json", "bytes, found"),
    ],
)
def test_damage_is_said_once_with_all_else_that_is_known(
    run: Path, capsys: pytest.CaptureFixture[str], edit: Any, name: str, message: str
) -> None:
    folder = run / "checkpoints" / "step_000001"
    edit(folder / name)
    code, lines, errors = inspect(capsys, folder)
    assert code == 3 and lines[0] == f"{folder}: damaged, sizes compared (--verify: checksums too)"
    assert lines[1].split() == ["step", "1"]
    assert len([line for line in errors if line.startswith(f"{folder / name}: ") and message in line]) == 1
    assert all(str(folder) in line for line in errors)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"state": {"step": NaN}, "callbacks": {}}', "found NaN, which is not JSON"),
        ('{"state": [], "callbacks": {}}', "expected the entries state and callbacks"),
        ('{"state": {"step": 9}, "callbacks": {}}', "expected step 1 as in the manifest, found 9"),
    ],
)
def test_a_state_that_somebody_wrote(run: Path, capsys: pytest.CaptureFixture[str], content: str, message: str) -> None:
    path = run / "checkpoints" / "step_000001" / "state.json"
    path.write_text(content)
    manifest = json.loads(path.with_name("manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["name"] == path.name:
            entry["bytes"] = path.stat().st_size
    path.with_name("manifest.json").write_text(json.dumps(manifest))
    code, _, errors = inspect(capsys, path.parent)
    assert code == 3 and len(errors) == 1
    assert errors[0].startswith(f"{path}: ") and message in errors[0]


def test_what_is_no_checkpoint(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, errors = inspect(capsys, tmp_path / "nowhere")
    assert code == 3 and "no such run or checkpoint" in errors[0]
    assert main(["export", f"checkpoint={run}", f"output={tmp_path / 'whole'}", "format=retro"]) == 0
    capsys.readouterr()
    code, _, errors = inspect(capsys, tmp_path / "whole")
    assert code == 3 and "found a model by itself" in errors[0]
    (run / "checkpoints" / "step_000001" / "manifest.json").unlink()
    code, _, errors = inspect(capsys, run / "checkpoints" / "step_000001")
    assert code == 3 and "unfinished" in errors[0]
