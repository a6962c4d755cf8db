"""Early stopping: when it ends a run, what it keeps, and that kills and restarts change nothing."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from retro.artifacts.checkpoint_folders import list_checkpoints
from retro.artifacts.fingerprint import sha256_file
from retro.cli.train import _open_scorer, main
from retro.config.early_stopping import EarlyStoppingConfig
from retro.config.errors import ConfigError
from retro.config.loader import from_dict
from retro.config.train import TrainConfig
from retro.train.callbacks.checkpointer import Checkpointer
from retro.train.callbacks.early_stopping import EarlyStopping, has_ended
from retro.train.run import train
from retro.train.state import TrainState, ValidationRecord
from tests.train import releases
from tests.train.questions import qa_settings, write_questions

ANSWERS = {"metric": "exact_match", "patience": 2, "questions": 6, "batch": 4}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("questions") / "prepared")


class Run:
    """What the callback needs of a trainer."""

    ended = False

    def end_early(self) -> None:
        self.ended = True


def record(step: int, loss: float = 1.0, **scores: float) -> ValidationRecord:
    return ValidationRecord(TrainState(step=step), loss, 1.0, 1, 1, scores=scores)


def steps_until_end(config: EarlyStoppingConfig, records: list[ValidationRecord]) -> int | None:
    callback, run = EarlyStopping(config), Run()
    for found in records:
        callback.on_validation(run, found)  # type: ignore[arg-type]
        if run.ended:
            return found.state.step
    return None


@pytest.mark.parametrize(
    ("changes", "values", "expected"),
    [
        ({"patience": 2}, [0.1, 0.2, 0.2, 0.1], 4),
        ({"patience": 2}, [0.1, 0.2, 0.2, 0.3, 0.1], None),
        ({"patience": 1, "min_delta": 0.05}, [0.1, 0.14], 2),
        ({"patience": 1, "min_delta": 0.05}, [0.1, 0.16, 0.22], None),
        ({"patience": 1, "min_steps": 4}, [0.3, 0.1, 0.1, 0.1, 0.1], 4),
        ({"patience": 2}, [0.3, float("nan"), float("nan")], 3),
        ({"patience": 3, "metric": "loss", "questions": 200, "batch": 32}, [3, 2, 4, 5, 2], 5),
    ],
)
def test_patience(changes: dict[str, Any], values: list[float], expected: int | None):
    config = EarlyStoppingConfig(**changes)
    key = "loss" if config.metric == "loss" else "exact_match"
    assert steps_until_end(config, [record(i, **{key: value}) for i, value in enumerate(values, start=1)]) == expected


def test_its_state_goes_on_and_another_metric_begins_anew():
    config = EarlyStoppingConfig(patience=3)
    first, run = EarlyStopping(config), Run()
    for found in (record(1, exact_match=0.5), record(2, exact_match=0.4), record(3, exact_match=0.4)):
        first.on_validation(run, found)  # type: ignore[arg-type]
    stored = json.loads(json.dumps(first.state()))
    assert not has_ended(config, stored, 3)
    assert has_ended(EarlyStoppingConfig(patience=2), stored, 3)
    assert not has_ended(EarlyStoppingConfig(patience=2, metric="f1"), stored, 3)
    assert not has_ended(None, stored, 3) and not has_ended(config, None, 3)
    second, other = EarlyStopping(config), EarlyStopping(EarlyStoppingConfig(patience=1, metric="f1"))
    second.load_state(stored)
    other.load_state(stored)
    assert (second.best, second.best_step, second.waited) == (0.5, 1, 2)
    assert (other.best, other.waited) == (None, 0)


def test_the_best_checkpoint_follows_the_metric(tmp_path: Path):
    made = {name: Checkpointer(tmp_path, None, every=1, keep=1, metric=name) for name in ("loss", "f1")}  # type: ignore[arg-type]
    for found in (record(1, 3.0, f1=0.5), record(2, 2.0, f1=0.7), record(3, 1.0, f1=0.6), record(4, 1.0, f1=0.7)):
        for callback in made.values():
            callback.on_validation(None, found)  # type: ignore[arg-type]
    assert made["loss"].state() == {"best_loss": 1.0, "best_step": 3}
    assert made["f1"].state() == {"best_f1": 0.7, "best_step": 2}
    made["loss"].load_state(made["f1"].state())
    assert made["loss"].state() == {"best_loss": None, "best_step": None}


def values(release: Path, root: Path, questions: Path, arm: str = "rag", **changes: Any) -> dict[str, Any]:
    fields = {**qa_settings(questions, arm), "early_stopping": ANSWERS, "steps": 40, "validate_every": 4, **changes}
    return releases.settings(release, root, arm.startswith("retro"), **fields)


def test_a_run_ends_early_once_and_a_higher_patience_goes_on(release: Path, questions: Path, tmp_path: Path):
    settings = values(release, tmp_path, questions, early_stopping={**ANSWERS, "min_delta": 1.0})
    file = releases.write_yaml(tmp_path / "run.yaml", settings)
    assert main([str(file)]) == 0
    run = tmp_path / "run"
    found = releases.metrics(run, "validation")
    # Nothing is better by 1: the first validation, and two more.
    assert [row["step"] for row in found] == [4, 8, 12]
    assert all(0 <= row["exact_match"] <= row["f1"] <= 1 for row in found)
    assert list_checkpoints(run / "checkpoints")[-1][0] == 12
    assert "early stopping: exact_match was best with" in (run / "log.txt").read_text()
    before = sorted((path, path.stat().st_mtime_ns) for path in (run / "checkpoints").rglob("*"))
    assert main([str(file)]) == 0
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (run / "checkpoints").rglob("*"))
    assert "early stopping ended it at step 12; nothing to do" in (run / "log.txt").read_text()
    assert main([str(file), "early_stopping.patience=4"]) == 0
    assert [row["step"] for row in releases.metrics(run, "validation")] == [4, 8, 12, 16, 20]


def test_asking_changes_no_weight(release: Path, questions: Path, tmp_path: Path):
    runs = []
    for name, stopping in (("asked", {**ANSWERS, "patience": 99}), ("not", None)):
        settings = values(release, tmp_path, questions, "retro++", early_stopping=stopping, name=name, steps=8)
        settings["model"]["dropout"] = 0.1
        runs.append(train(from_dict(TrainConfig, settings), opener=_open_scorer).folder)
    for file in ("model.safetensors", "optimizer.safetensors", "rng.safetensors"):
        first, second = (sha256_file(list_checkpoints(run / "checkpoints")[-1][1] / file) for run in runs)
        assert first == second, file
    rows = [
        [{k: v for k, v in row.items() if k not in ("exact_match", "f1")} for row in releases.metrics(run)]
        for run in runs
    ]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(release: Path, questions: Path, tmp_path: Path):
    """Counters, weights and metrics, over a kill between validations."""
    names = ("clean", "killed")
    # Patience counts from the first validation on and ends the run after the ninth.
    early = {**ANSWERS, "min_delta": 1.0, "patience": 8}
    files = {
        name: releases.write_yaml(
            tmp_path / f"{name}.yaml",
            values(release, tmp_path, questions, "retro++", name=name, early_stopping=early, checkpoint_every=3,
                   steps=60, log_every=1),
        )
        for name in names
    }  # fmt: skip
    killed = tmp_path / "killed"
    for step in (10, 22):
        code, _ = releases.start_and_signal(
            releases.command(files["killed"]), killed / "metrics.jsonl", step, signal.SIGKILL
        )
        assert code == -signal.SIGKILL
    for name in names:
        subprocess.run(releases.command(files[name]), check=True, env=releases.environment(), capture_output=True)
    clean = tmp_path / "clean"
    assert releases.metrics(clean, "validation")[-1]["step"] == 36
    assert releases.metrics(clean) == releases.metrics(killed)
    ends = [list_checkpoints(run / "checkpoints")[-1][1] for run in (clean, killed)]
    assert ends[0].name == ends[1].name == "step_000036"
    for file in ("model.safetensors", "optimizer.safetensors", "rng.safetensors"):
        assert sha256_file(ends[0] / file) == sha256_file(ends[1] / file)
    states = [json.loads((end / "state.json").read_text())["callbacks"]["early_stopping"] for end in ends]
    assert states[0] == states[1]


@pytest.mark.slow
def test_processes_share_the_questions(release: Path, questions: Path, tmp_path: Path):
    """Two processes (ddp) find the scores that one finds and end at the same step."""
    found = {}
    settings = values(release, tmp_path, questions, "retro++", early_stopping={**ANSWERS, "min_delta": 1.0})
    for world in (1, 2):
        file = releases.write_yaml(tmp_path / f"{world}.yaml", {**settings, "name": f"world{world}"})
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", "-m", "retro.cli.train"]
        command = [releases.command(file)[0], *start, str(file)]
        done = subprocess.run(command, env=releases.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found[world] = releases.metrics(tmp_path / f"world{world}", "validation")
    assert [row["step"] for row in found[1]] == [row["step"] for row in found[2]] == [4, 8, 12]
    for one, two in zip(found[1], found[2], strict=True):
        assert one["exact_match"] == pytest.approx(two["exact_match"], abs=1 / 6 + 1e-9)  # last bits may turn an answer
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"early_stopping": {"metric": "accuracy"}},
            r"expected loss or a metric of task toy \(exact_match, f1\), found",
        ),
        ({"early_stopping": {"metric": "loss", "questions": 5}}, r"questions: no question is asked for metric 'loss'"),
        ({"early_stopping": {"patience": 0}}, r"patience: expected 1 or more"),
        ({"validate_every": 0}, r"early_stopping: needs validations; set validate_every"),
        ({"checkpoint_every": 0}, r"early_stopping: the best weights are kept with checkpoint_every"),
        ({"parallel": {"strategy": "fsdp"}}, r"use strategy ddp alone, or early_stopping\.metric=loss"),
        ({"parallel": {"tensor": 2}}, r"use strategy ddp alone"),
        ({"dataset": "text", "qa": None}, r"early_stopping\.metric: expected loss with dataset 'text'"),
    ],
)
def test_mistakes_are_one_line(release: Path, questions: Path, tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        train(from_dict(TrainConfig, values(release, tmp_path, questions, **changes)), opener=_open_scorer)


def test_training_by_itself_says_that_it_cannot_ask(release: Path, questions: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"start the run with `retro train`"):
        train(from_dict(TrainConfig, values(release, tmp_path, questions)))


def test_text_runs_stop_on_their_loss(release: Path, tmp_path: Path):
    stopping = {"metric": "loss", "patience": 1, "min_delta": 100.0}
    run = train(releases.config(release, tmp_path, steps=40, early_stopping=stopping)).folder
    assert [row["step"] for row in releases.metrics(run, "validation")] == [4, 8]
