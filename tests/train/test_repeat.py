"""A run folder alone repeats the run: its configuration from any working directory, and with the source it keeps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from retro.artifacts.fingerprint import sha256_file
from retro.artifacts.source_code import digest_source, pack_source, read_source, source_root
from retro.cli.train import main
from retro.config.loader import load_config
from retro.config.train import TrainConfig
from retro.train import sessions
from tests.train import releases


def final(run: Path) -> list[str]:
    folder = run / "checkpoints" / "step_000008"
    return [sha256_file(folder / name) for name in ("model.safetensors", "optimizer.safetensors", "rng.safetensors")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was given relative paths and overrides, in its folder."""
    root = tmp_path_factory.mktemp("place")
    (root / "data").mkdir()
    releases.build_release(root / "data")
    values = releases.settings(Path("data/release.json"), Path("runs"), name="first")
    values["model"]["dropout"] = 0.1
    releases.write_yaml(root / "run.yaml", values)
    patch = pytest.MonkeyPatch()
    patch.chdir(root)
    assert main(["run.yaml", "learning_rate=3e-3", "model.width=8"]) == 0
    patch.undo()
    return root / "runs" / "first"


def test_the_folder_says_what_ran(run: Path):
    config = load_config(TrainConfig, run / "config.yaml")
    assert (config.learning_rate, config.model.width, config.model.vocab_size) == (3e-3, 8, releases.VOCABULARY)
    assert config.release == str(run.parents[1] / "data" / "release.json")
    assert config.run_root == str(run.parent)
    environment = json.loads((run / "environment.json").read_text())
    assert environment["command"] == list(sys.orig_argv)
    assert environment["working_directory"] == str(run.parents[1])
    packages = (run / "packages.txt").read_text().splitlines()
    assert f"torch=={environment['packages']['torch']}" in packages
    assert packages == sorted(packages, key=str.lower)
    assert not [line for line in packages if line.startswith("retro")]  # on no index, `pip install -r` would fail


def test_the_source_is_kept_once_per_content(run: Path):
    (file,) = (run / "code").iterdir()
    files = read_source(source_root())
    assert file.stem == digest_source(files) == json.loads((run / "environment.json").read_text())["code"][5:21]
    with zipfile.ZipFile(file) as archive:
        assert archive.read("retro/train/trainer.py") == (source_root() / "retro/train/trainer.py").read_bytes()
        assert {name.split("/")[0] for name in archive.namelist()} == {"retro", "data_prep", "launch"}
        assert not [name for name in archive.namelist() if "__pycache__" in name]
    assert read_source(file) == files
    assert pack_source(files) == file.read_bytes()
    changed = {**files, "retro/__init__.py": b"#" + files["retro/__init__.py"]}
    assert digest_source(changed) != file.stem
    assert file.stat().st_size < 3_000_000


def test_it_is_repeated_bit_for_bit_anywhere_with_the_source_it_keeps(run: Path, tmp_path: Path):
    (code,) = (run / "code").iterdir()
    arguments = [str(run / "config.yaml"), f"run_root={tmp_path / 'again'}", "name=second"]
    environment = {k: v for k, v in releases.environment().items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(code)}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = [sys.executable, "-c", "import retro, launch; print(retro.__file__, launch.__file__)"]
    shown = subprocess.run(where, env=environment, cwd=elsewhere, capture_output=True, text=True, check=True).stdout
    assert shown.count(str(code)) == 2, shown
    done = subprocess.run(
        [sys.executable, "-m", "retro.cli.train", *arguments],
        env=environment, cwd=elsewhere, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    again = tmp_path / "again" / "second"
    assert final(again) == final(run)
    assert releases.metrics(again) == releases.metrics(run)
    # Which is the same source again.
    assert [path.name for path in (again / "code").iterdir()] == [code.name]
    assert list(elsewhere.iterdir()) == []


def test_it_is_repeated_by_the_command_in_another_working_directory(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert main([str(run / "config.yaml"), "run_root=here", "name=second"]) == 0
    assert final(tmp_path / "here" / "second") == final(run)
    # Without overrides it is this run, and finished.
    assert main([str(run / "config.yaml")]) == 0
    # The data may have moved: the release that the folder keeps finds it from there.
    assert main([str(run / "config.yaml"), f"release={run}", "run_root=here", "name=third"]) == 0
    assert final(tmp_path / "here" / "third") == final(run)


def test_sessions_tell_when_where_and_why_each_ended(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import signal

    from retro.train.trainer import Trainer

    file = releases.write_yaml(tmp_path / "run.yaml", releases.settings(release, tmp_path))
    history = tmp_path / "run" / "sessions.jsonl"
    original = Trainer.forward_backward

    def failing(trainer: Trainer, *arguments: object, **options: object) -> object:
        if trainer.state.step == 6:
            raise RuntimeError("out of\nluck")
        return original(trainer, *arguments, **options)  # type: ignore[arg-type]

    def stopped(trainer: Trainer, *arguments: object, **options: object) -> object:
        if trainer.state.step == 5:
            signal.raise_signal(signal.SIGTERM)
        return original(trainer, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "forward_backward", failing)
    with pytest.raises(RuntimeError):
        main([str(file)])
    with open(history, "a") as stream:
        stream.write('{"event": "sta')  # killed while it was written
    monkeypatch.setattr(Trainer, "forward_backward", stopped)
    assert main([str(file)]) == 75
    monkeypatch.undo()
    assert main([str(file)]) == 0
    assert main([str(file)]) == 0  # nothing to do: no session
    rows = sessions.read_json_lines(history)
    assert [(row["event"], row["session"], row["step"]) for row in rows] == [
        ("start", 1, 0), ("end", 1, 6), ("start", 2, 4), ("end", 2, 6), ("start", 3, 6), ("end", 3, 8),
    ]  # fmt: skip
    assert [row["reason"] for row in rows if row["event"] == "end"] == [
        "RuntimeError: out of luck", "SIGTERM", "finished",
    ]  # fmt: skip
    first = rows[0]
    assert first["processes"] == 1 and first["device"] == "cpu" and first["pid"] == os.getpid()
    assert first["host"] and first["time"] and (tmp_path / "run" / first["code"]).is_file()
