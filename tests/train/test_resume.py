"""2k steps = k steps, killed, resumed, k steps: bit for bit. With real processes and real signals."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from retro.artifacts.checkpoint_folders import list_checkpoints
from retro.artifacts.fingerprint import sha256_file
from retro.cli.train import main
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ConfigError
from retro.config.loader import from_dict
from retro.config.train import TrainConfig
from retro.train.callbacks.metrics_file import truncate_metrics
from retro.train.run import train
from retro.train.run_folder import RunFolder
from retro.train.state import TrainState
from tests.train import releases

STEPS = 120
# Dropout makes the random generators matter; windows of 7 steps make the callbacks' states matter.
LONG = {"steps": STEPS, "log_every": 7, "checkpoint_every": 10, "validate_every": 50}


def long_settings(release: Path, root: Path, **changes: object) -> dict:
    values = releases.settings(release, root, **LONG, **changes)
    values["model"]["dropout"] = 0.1
    return values


def last_weights(run: Path) -> str:
    step, folder = list_checkpoints(run / "checkpoints")[-1]
    assert step == STEPS
    return sha256_file(folder / "model.safetensors") + sha256_file(folder / "optimizer.safetensors")


def times_of_results(run: Path) -> list[tuple[Path, int]]:
    """Files of the run with their times of change; the log and the lock say who looked, so they change each time."""
    looked = {"log.txt", ".lock"}
    return sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*.*") if path.name not in looked)


def test_killed_and_resumed_equals_undisturbed(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    train(from_dict(TrainConfig, long_settings(release, tmp_path, name="clean")))
    killed = releases.write_yaml(tmp_path / "killed.yaml", long_settings(release, tmp_path, name="killed"))
    run = tmp_path / "killed"
    for step in (14, 49):
        code, _ = releases.start_and_signal(releases.command(killed), run / "metrics.jsonl", step, signal.SIGKILL)
        assert code == -signal.SIGKILL
        steps = [number for number, _ in list_checkpoints(run / "checkpoints")]  # none if it died writing the first
        assert max(steps, default=0) < STEPS
    assert steps
    done = subprocess.run(
        releases.command(killed), check=True, env=releases.environment(), capture_output=True, text=True
    )
    assert "resuming at step" in done.stderr
    assert last_weights(run) == last_weights(tmp_path / "clean")
    assert releases.metrics(run) == releases.metrics(tmp_path / "clean")
    assert len(releases.metrics(run, "train")) == STEPS // 7 + 1

    assert not [path for path in run.rglob("*") if ".tmp-" in path.name]

    before = times_of_results(run)
    capsys.readouterr()
    assert main([str(killed)]) == 0
    assert capsys.readouterr().err == f"{run}: finished at step {STEPS}; nothing to do\n"
    assert times_of_results(run) == before


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGUSR2, 75), (signal.SIGINT, 130)],
    ids=["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT"],
)
def test_a_polite_signal_finishes_the_step_and_saves(release: Path, tmp_path: Path, number: signal.Signals, code: int):
    values = releases.settings(
        release, tmp_path, steps=400, log_every=1, checkpoint_every=0, validate_every=0, name="polite"
    )
    file = releases.write_yaml(tmp_path / "polite.yaml", values)
    found, errors = releases.start_and_signal(releases.command(file), tmp_path / "polite" / "metrics.jsonl", 3, number)
    assert found == code, errors
    ((step, _),) = list_checkpoints(tmp_path / "polite" / "checkpoints")
    assert 3 <= step < 400
    lines = errors.splitlines()
    assert lines[-1] == f"stopped by {number.name} after step {step}; checkpoint written, the same command resumes"
    assert "Traceback" not in errors
    assert releases.metrics(tmp_path / "polite", "train")[-1]["step"] == step


def test_resumes_with_other_speed_fields(release: Path, tmp_path: Path):
    first = releases.config(release, tmp_path, checkpoint_every=4, keep_checkpoints=5)
    train(first)
    clean = (tmp_path / "run" / "checkpoints" / "step_000008" / "model.safetensors").read_bytes()
    _drop_last(tmp_path / "run")
    changed = {"checkpoint_every": 1, "log_every": 2, "loader_workers": 1, "keep_checkpoints": 9, "validate_every": 8}
    outcome = train(releases.config(release, tmp_path, **changed))
    assert outcome.state.step == 8
    folders = list_checkpoints(outcome.folder / "checkpoints")
    assert [step for step, _ in folders] == [4, 5, 6, 7, 8]
    assert (folders[-1][1] / "model.safetensors").read_bytes() == clean


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"steps": 9}, "steps: checkpoint 8, now 9"),
        ({"learning_rate": 2e-2}, "learning_rate: checkpoint 0.01, now 0.02"),
        ({"global_batch": 8}, "global_batch: checkpoint 4, now 8"),
        ({"retro": False}, "model.cross_attention_layers: checkpoint [2], now []"),
    ],
    ids=["steps", "learning_rate", "global_batch", "model"],
)
def test_another_configuration_in_the_same_folder_is_refused(release: Path, tmp_path: Path, change: dict, field: str):
    train(releases.config(release, tmp_path))
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(ArtifactMismatchError, match="another name=") as caught:
        train(releases.config(release, tmp_path, **change))
    assert field in str(caught.value)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_another_release_is_refused(release: Path, tmp_path: Path):
    train(releases.config(release, tmp_path))
    other = releases.build_release(tmp_path / "other", seed=1)
    with pytest.raises(ArtifactMismatchError, match="release: checkpoint"):
        train(releases.config(other, tmp_path))


def test_a_damaged_checkpoint_is_refused_and_the_one_before_serves(release: Path, tmp_path: Path):
    train(releases.config(release, tmp_path))
    checkpoints = tmp_path / "run" / "checkpoints"
    clean = (checkpoints / "step_000008" / "model.safetensors").read_bytes()
    _drop_last(tmp_path / "run")
    file = checkpoints / "step_000004" / "optimizer.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactCorruptError, match=r"step_000004/optimizer\.safetensors"):
        train(releases.config(release, tmp_path))
    file.write_bytes(content)
    train(releases.config(release, tmp_path))
    assert (checkpoints / "step_000008" / "model.safetensors").read_bytes() == clean


def test_two_processes_may_not_train_one_run(release: Path, tmp_path: Path):
    config = releases.config(release, tmp_path)
    with RunFolder(config).lock(), pytest.raises(ConfigError, match="another process is training this run"):
        train(config)


def test_metrics_are_cut_at_the_step_and_at_a_broken_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    rows = [json.dumps({"event": "train", "step": step}) for step in (1, 2, 3)]
    path.write_text("\n".join(rows) + "\n")
    truncate_metrics(path, TrainState(2))
    assert path.read_text() == "\n".join(rows[:2]) + "\n"
    path.write_text(rows[0] + "\n" + rows[1][:7])
    truncate_metrics(path, TrainState(2))
    assert path.read_text() == rows[0] + "\n"
    truncate_metrics(path, TrainState())
    assert path.read_text() == ""
    truncate_metrics(tmp_path / "absent", TrainState(5))


def _drop_last(run: Path) -> None:
    shutil.rmtree(list_checkpoints(run / "checkpoints")[-1][1])
