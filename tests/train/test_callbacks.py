"""Observers: what they write, and that a resumed run continues it."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retro.config.errors import ConfigError
from retro.train.callbacks.log_window import LogWindow
from retro.train.callbacks.progress import Progress
from retro.train.callbacks.utilisation import Utilisation
from retro.train.callbacks.weights_and_biases import WeightsAndBiases
from retro.train.peak import Peak
from retro.train.run import train
from retro.train.state import StepRecord, TrainingDivergedError, TrainState
from tests.train import releases
from tests.train.poison import Poison


def record(step: int, loss_sum: float = 20.0, tokens: int = 10, seconds: float = 0.5) -> StepRecord:
    state = TrainState(step, step * 4, step * tokens, step * seconds)
    return StepRecord(state, loss_sum / tokens, loss_sum, tokens, 0.1, 1.0, seconds, data_seconds=seconds / 10)


def fake_trainer(step: int = 0, steps: int = 10, last: bool = False) -> Any:
    return SimpleNamespace(state=TrainState(step), steps=steps, is_last_step=last, callback_seconds={})


def utilisation(flops: int = 10**12, peak: float = 5.0) -> Utilisation:
    """Of steps of `flops` operations on a device of `peak` TFLOP/s."""
    counter = Utilisation(Peak(peak, "configuration"))
    counter.step_flops = flops
    return counter


def test_a_line_covers_the_steps_since_the_last_line():
    rows: list[dict[str, Any]] = []
    window = LogWindow(2, rows.append, utilisation())
    for step, loss_sum, tokens in ((1, 10.0, 10), (2, 90.0, 30), (3, 5.0, 5)):
        window.on_step(fake_trainer(steps=3), record(step, loss_sum, tokens))
    assert [(row["step"], row["loss"], row["tokens_per_s"]) for row in rows] == [(2, 2.5, 40.0), (3, 1.0, 10.0)]


def test_the_window_survives_a_resume():
    straight: list[dict[str, Any]] = []
    resumed: list[dict[str, Any]] = []
    window = LogWindow(4, straight.append, utilisation())
    for step in range(1, 5):
        window.on_step(fake_trainer(), record(step, step / 7))
    first = LogWindow(4, resumed.append, utilisation())
    for step in (1, 2):
        first.on_step(fake_trainer(), record(step, step / 7))
    second = LogWindow(4, resumed.append, utilisation())
    second.load_state(json.loads(json.dumps(first.state())))
    for step in (3, 4):
        second.on_step(fake_trainer(), record(step, step / 7))
    assert resumed == straight


@pytest.mark.parametrize(("every", "lines"), [(0, [8]), (3, [3, 6, 8]), (8, [8]), (100, [8])])
def test_metrics_always_have_the_last_step(release: Path, tmp_path: Path, every: int, lines: list[int]):
    run = train(releases.config(release, tmp_path, log_every=every, validate_every=0)).folder
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == lines
    assert list(rows[0]) == [
        "event", "step", "samples", "sample_hash", "tokens", "loss", "learning_rate", "grad_norm", "clipped",
        "skipped_steps", "rollbacks", "tokens_per_s", "sequences_per_s", "model_tflops_per_s", "mfu", "data_wait",
        "validation_s", "checkpoint_s", "elapsed_s", "grad_norm_embedding", "grad_norm_decoder",
        "grad_norm_cross_attention", "grad_norm_encoder", "memory_gib",
    ]  # fmt: skip
    assert rows[-1]["samples"] == 32


def test_progress_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture):
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda r: lines.append(r.getMessage())  # type: ignore[method-assign]
    log = logging.Logger("test", logging.INFO)
    log.addHandler(handler)
    progress = Progress(log, utilisation(), seconds=3600)
    progress.on_start(fake_trainer())
    for step in range(1, 11):
        progress.on_step(fake_trainer(last=step == 10), record(step))
    progress.on_stop(fake_trainer(), failed=False)
    assert lines == [
        "step 1/10  loss 2.000  grad 1.00  lr 1.00e-01  20 tokens/s  MFU 40.0%  data 10.0%  left 0:04",
        "step 10/10  loss 2.000  grad 1.00  lr 1.00e-01  20 tokens/s  MFU 40.0%  data 10.0%  left 0:00",
    ]
    assert capsys.readouterr().err == ""


def test_progress_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress(logging.Logger("test"), utilisation())
    progress.on_start(fake_trainer(step=5))
    progress.on_step(fake_trainer(), record(6))
    progress.on_stop(fake_trainer(), failed=False)
    shown = capsys.readouterr().err
    assert "6/10" in shown
    assert "loss 2.000, 20 tokens/s, MFU 40.0%, data 10.0%" in shown


def test_tensorboard_gets_what_metrics_get(release: Path, tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(releases.config(release, tmp_path, tensorboard=True)).folder
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    for event, name in (("train", "loss"), ("train", "grad_norm"), ("validation", "bits_per_byte")):
        found = [(scalar.step, scalar.value) for scalar in events.Scalars(f"{event}/{name}")]
        expected = [(row["step"], row[name]) for row in releases.metrics(run, event)]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected])


def test_wandb_offline_works_without_an_account(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    run = train(releases.config(release, tmp_path, wandb="offline")).folder
    (record_file,) = run.glob("wandb/offline-run-*/*.wandb")
    assert record_file.stat().st_size > 0
    state = json.loads((run / "checkpoints" / "step_000008" / "state.json").read_text())
    assert state["callbacks"]["wandb"]["id"] in record_file.name


@pytest.mark.parametrize(
    ("module", "change"),
    [("wandb", {"wandb": "offline"}), ("torch.utils.tensorboard", {"tensorboard": True})],
    ids=["wandb", "tensorboard"],
)
def test_a_missing_package_is_a_clear_error(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, change: dict
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match="pip install 'retro-pretraining"):
        train(releases.config(release, tmp_path, **change))


def test_wandb_goes_on_with_one_run_after_a_kill_and_a_rollback(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    told: list[dict[str, Any]] = []
    send = WeightsAndBiases._send

    def watched(self: WeightsAndBiases, row: dict[str, Any]) -> None:
        told.append(row)
        send(self, row)

    monkeypatch.setattr(WeightsAndBiases, "_send", watched)
    changes = {"wandb": "offline", "log_every": 1, "validate_every": 0, "on_nonfinite": "rollback"}
    with monkeypatch.context() as patch:
        Poison((8,)).install(patch.setattr)  # before the first checkpoint, so that no state tells the id
        with pytest.raises(TrainingDivergedError):
            train(releases.config(release, tmp_path, **{**changes, "on_nonfinite": "stop"}))
        run = train(releases.config(release, tmp_path, **changes)).folder
    identity = (run / "wandb" / "run_id").read_text().strip()
    folders = list(run.glob("wandb/offline-run-*"))
    # Two sessions within a second get a number behind it.
    assert folders and all(re.search(rf"-{identity}(-\d+)?$", folder.name) for folder in folders)
    # What was told twice is over the same step, and the later one is that of metrics.jsonl.
    assert [row["step"] for row in told] == [1, 2, 1, 2, *range(1, 9)]
    last = {row["step"]: row["loss"] for row in told}
    assert last == {row["step"]: row["loss"] for row in releases.metrics(run, "train")}
