"""Loss or gradient that are not finite: stop, skip, roll back; agreed on, logged, bounded, and safe from kills."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from retro.artifacts.checkpoint_folders import list_checkpoints
from retro.artifacts.fingerprint import sha256_file
from retro.train.callbacks.base import Callback
from retro.train.nonfinite import Incident, NonfinitePolicy, position_after_rollbacks
from retro.train.run import train
from retro.train.state import StepRecord, TrainingDivergedError, TrainState
from retro.train.trainer import Trainer
from retro.train.validation import Validation
from tests.train import releases
from tests.train.poison import Poison, run_poisoned, without_death
from tests.train.test_trainer import build

# Steps of 4 sequences: step s begins at position 4 (s - 1).
STEPS, BATCH = 12, 4
COMMON: dict[str, Any] = {"steps": STEPS, "log_every": 1, "checkpoint_every": 4, "validate_every": 6}


def settings(release: Path, root: Path, **changes: Any) -> dict[str, Any]:
    values = releases.settings(release, root, **{**COMMON, **changes})
    values["model"]["dropout"] = 0.1  # makes the generators matter
    return values


def start(release: Path, root: Path, **changes: Any) -> Any:
    from retro.config.loader import from_dict
    from retro.config.train import TrainConfig

    return train(from_dict(TrainConfig, settings(release, root, **changes)))


def weights(run: Path) -> str:
    step, folder = list_checkpoints(run / "checkpoints")[-1]
    assert step == STEPS
    return sha256_file(folder / "model.safetensors") + sha256_file(folder / "optimizer.safetensors")


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "incidents.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_skipped_step_changes_neither_weights_nor_optimizer(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any
):
    Poison((8,), where=where).install(monkeypatch.setattr)
    seen: list[list[torch.Tensor]] = []
    records: list[StepRecord] = []

    class Look(Callback):
        def on_step(self, trainer: Trainer, record: StepRecord) -> None:
            records.append(record)
            tensors = list(trainer.model.state_dict().values())
            tensors += [t for state in trainer.optimizer.state.values() for t in state.values()]
            seen.append([t.clone() for t in tensors])

    trainer, _ = build(
        releases.config(release, tmp_path, steps=5), callbacks=[Look()], nonfinite=NonfinitePolicy("skip", 1)
    )
    state = trainer.fit()
    assert [record.taken for record in records] == [True, True, False, True, True]
    same = [all(torch.equal(a, b) for a, b in zip(x, y, strict=True)) for x, y in itertools.pairwise(seen)]
    assert same == [False, True, False, False]
    assert (state.step, state.samples, state.skipped, state.rollbacks) == (5, 20, 1, 0)
    assert records[2].state.tokens == records[1].state.tokens
    assert all(p.grad is None for p in trainer.model.parameters())


def test_a_skip_is_logged_and_the_figures_stay_finite(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Poison((8,), micro_batch=1).install(monkeypatch.setattr)
    outcome = start(release, tmp_path, on_nonfinite="skip", micro_batch=2)
    assert (outcome.state.step, outcome.state.skipped) == (STEPS, 1)
    (event,) = releases.metrics(outcome.folder, "nonfinite")
    assert event == {
        "event": "nonfinite", "step": 3, "incident": 1, "failed_step": 3, "action": "skip", "loss": "nan",
        "grad_norm": event["grad_norm"], "positions": [8, 12], "samples": 12,
        "losses": [{"rank": 0, "micro_batch": 1, "positions": [10, 12]}],
    }  # fmt: skip
    rows = releases.metrics(outcome.folder, "train")
    assert [row["skipped_steps"] for row in rows] == [0, 0] + [1] * 10
    assert rows[2]["loss"] is None and all(math.isfinite(row["loss"]) for row in rows if row["step"] != 3)
    log = (outcome.folder / "log.txt").read_text()
    expected = "from micro-batch 1 of process 0 (sequences 10 to 11), sequences 8 to 11 of the sample stream: skipped"
    assert "WARNING step 3: loss nan" in log and expected in log


def test_stop_says_how_to_go_on_and_the_run_goes_on_so(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Poison((20,)).install(monkeypatch.setattr)
    for name in ("skip", "rollback"):
        with pytest.raises(TrainingDivergedError, match="resume with on_nonfinite=skip or on_nonfinite=rollback"):
            start(release, tmp_path, name=name)
        assert releases.metrics(tmp_path / name)[-1]["action"] == "stop"
        outcome = start(release, tmp_path, name=name, on_nonfinite=name)
        assert (outcome.state.step, outcome.state.incidents) == (STEPS, 1)
        assert [row["action"] for row in history(outcome.folder)] == ["stop", name]
        assert [row["action"] for row in releases.metrics(outcome.folder, "nonfinite")] == [name]


def test_a_rollback_goes_on_from_the_checkpoint_behind_the_data(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        Poison((20,)).install(patch.setattr)
        outcome = start(release, tmp_path, name="rolled", on_nonfinite="rollback", tensorboard=True)
    # Step 6 is bad: back to step 4, then on at position 24.
    assert outcome.state == dataclasses.replace(
        outcome.state, step=STEPS, samples=24 + 8 * BATCH, rollbacks=1, skipped=0
    )
    rows = releases.metrics(outcome.folder)
    assert [row["step"] for row in rows if row["event"] == "train"] == list(range(1, STEPS + 1))
    assert [(row["action"], row["failed_step"], row["step"], row["samples"]) for row in rows if "action" in row] == [
        ("rollback", 6, 4, 24)
    ]

    # The same without anything bad: a run that is moved there after step 4.
    announce = Trainer._announce

    def moved(trainer: Trainer, record: StepRecord) -> None:
        announce(trainer, record)
        if record.state.step == 4:
            trainer.go_back(dataclasses.replace(trainer.state, samples=24))

    monkeypatch.setattr(Trainer, "_announce", moved)
    start(release, tmp_path, name="moved")
    assert weights(tmp_path / "rolled") == weights(tmp_path / "moved")
    without = [{k: v for k, v in row.items() if k != "rollbacks"} for row in rows if row["event"] != "nonfinite"]
    expected = releases.metrics(tmp_path / "moved")
    assert without == [{k: v for k, v in row.items() if k != "rollbacks"} for row in expected]

    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scalars = EventAccumulator(str(outcome.folder / "tensorboard")).Reload().Scalars("train/loss")
    assert [scalar.step for scalar in scalars] == list(range(1, STEPS + 1))


def test_before_the_first_checkpoint_a_rollback_goes_to_the_start(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Poison((4, 8)).install(monkeypatch.setattr)
    outcome = start(release, tmp_path, on_nonfinite="rollback")
    # Back from step 2 to position 8, which is bad too: back again, on at 12.
    assert (outcome.state.rollbacks, outcome.state.samples) == (2, 12 + STEPS * BATCH)
    assert [row["step"] for row in releases.metrics(outcome.folder, "nonfinite")] == [0, 0]


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_the_limit_ends_a_run_that_only_gets_worse(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
):
    Poison(tuple(range(20, 400, 4))).install(monkeypatch.setattr)
    with pytest.raises(
        TrainingDivergedError, match="3 were borne before, and nonfinite_limit is 3; raise it"
    ) as caught:
        start(release, tmp_path, on_nonfinite=action, nonfinite_limit=3)
    assert caught.value.exit_code == 1
    assert [row["action"] for row in history(tmp_path / "run")] == [action] * 3 + ["stop"]
    monkeypatch.undo()
    raised = start(release, tmp_path, on_nonfinite=action, nonfinite_limit=4)
    assert raised.state.step == STEPS


@pytest.mark.parametrize("death", ["put back", "told", "kept", 5])
def test_a_run_killed_around_a_rollback_ends_as_one_that_was_not(release: Path, tmp_path: Path, death: Any):
    # Positions 20 and, after the first rollback, 28 are bad: two rollbacks to step 4.
    poison = Poison((20, 28), death=death, died=tmp_path / "died")
    runs = {}
    for name, used in (("clean", without_death(poison)), ("killed", poison)):
        values = settings(release, tmp_path, name=name, on_nonfinite="rollback", nonfinite_limit=2)
        file = releases.write_yaml(tmp_path / f"{name}.yaml", values)
        log = tmp_path / f"{name}.txt"
        codes = run_poisoned(file, used, log)
        if name == "killed":
            assert codes == [-9], log.read_text()
            assert list_checkpoints(tmp_path / name / "checkpoints")[-1][0] == 4
            codes = run_poisoned(file, used, log)
        assert codes == [0], log.read_text()
        runs[name] = tmp_path / name
    assert weights(runs["killed"]) == weights(runs["clean"])
    assert releases.metrics(runs["killed"]) == releases.metrics(runs["clean"])
    states = [json.loads((run / f"checkpoints/step_{STEPS:06d}/state.json").read_text()) for run in runs.values()]
    assert states[0]["state"]["rollbacks"] == states[1]["state"]["rollbacks"] == 2
    # What was decided before the kill is not found out again.
    assert len(history(runs["killed"])) == 2


@pytest.mark.slow
@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_two_processes_agree_though_one_only_saw_it(release: Path, tmp_path: Path, action: str):
    values = settings(release, tmp_path, name="two", on_nonfinite=action, micro_batch=1)
    file = releases.write_yaml(tmp_path / "two.yaml", values)
    log = tmp_path / "log.txt"
    assert run_poisoned(file, Poison((20,), rank=1, micro_batch=1), log, world=2) == [0, 0], log.read_text()
    (event,) = releases.metrics(tmp_path / "two", "nonfinite")
    assert event["action"] == action
    assert event["losses"] == [{"rank": 1, "micro_batch": 1, "positions": [23, 24]}]
    values = settings(release, tmp_path, name="one", on_nonfinite=action)
    file = releases.write_yaml(tmp_path / "one.yaml", values)
    assert run_poisoned(file, Poison((20,)), log) == [0], log.read_text()
    one, two = (releases.metrics(tmp_path / name, "train") for name in ("one", "two"))
    assert [(row["step"], row["samples"], row["sample_hash"]) for row in two] == [
        (row["step"], row["samples"], row["sample_hash"]) for row in one
    ]


@pytest.mark.slow
def test_all_processes_stop_by_the_same_error(release: Path, tmp_path: Path):
    file = releases.write_yaml(tmp_path / "two.yaml", settings(release, tmp_path, name="two"))
    log = tmp_path / "log.txt"
    assert run_poisoned(file, Poison((20,), rank=1), log, world=2) == [1, 1]
    assert log.read_text().count("error: step 6: loss nan, gradient norm") == 2
    assert "Traceback" not in log.read_text()


def test_an_entry_counts_for_its_own_checkpoint_only(tmp_path: Path):
    file = tmp_path / "incidents.jsonl"
    at = TrainState(step=4, samples=16, sample_hash=7)
    assert position_after_rollbacks(at, file) == at
    entry = {"restored": {"step": 4, "samples": 16, "sample_hash": f"{7:016x}"}, "samples": 24, "rollbacks": 1}
    file.write_text(json.dumps(entry) + "\n" + '{"restored": {"st')
    assert position_after_rollbacks(at, file) == dataclasses.replace(at, samples=24, rollbacks=1)
    for other in (TrainState(step=8, samples=32), dataclasses.replace(at, sample_hash=8)):
        assert position_after_rollbacks(other, file) == other


def test_a_policy_needs_something_to_go_back_to():
    with pytest.raises(ValueError, match="give restore"):
        NonfinitePolicy("rollback", 3)


def test_a_gradient_alone_is_described_without_a_micro_batch(release: Path, tmp_path: Path):
    heard: list[Incident] = []

    class Hear(Callback):
        def on_incident(self, trainer: Trainer, incident: Incident) -> None:
            heard.append(incident)

    trainer, _ = build(releases.config(release, tmp_path, steps=2), callbacks=[Hear()])
    trainer.model.norm.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingDivergedError):
        trainer.fit()
    assert heard[0].bad.losses == () and "micro-batch" not in heard[0].describe()
    assert math.isfinite(heard[0].bad.loss) and not math.isfinite(heard[0].bad.grad_norm)


def test_a_validation_that_is_not_finite_is_logged_and_never_the_best(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """Weights can be finite, and so can every training step, where the loss on other text is not."""
    found = Validation.run

    def poisoned(self: Validation, *arguments: Any) -> Any:
        record = found(self, *arguments)
        bad = record.state.step == 6
        return dataclasses.replace(record, loss=math.nan, bits_per_byte=math.nan) if bad else record

    monkeypatch.setattr(Validation, "run", poisoned)
    run = start(release, tmp_path, tensorboard=True).folder
    rows = releases.metrics(run, "validation")
    assert [(row["step"], row["loss"] is None, row["bits_per_byte"] is None) for row in rows] == [
        (6, True, True),
        (12, False, False),
    ]
    assert (run / "checkpoints" / "best").readlink().name == "step_000012"
    assert "warning: validation after step 6: loss nan" in capsys.readouterr().err
