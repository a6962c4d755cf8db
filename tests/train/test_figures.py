"""What a log line says beyond the loss: parts of the gradient, clipping, memory, waiting for data, other seconds."""

from __future__ import annotations

import json
import math
import mmap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from retro.train import memory
from retro.train.callbacks.log_window import LogWindow
from retro.train.callbacks.utilisation import Utilisation
from retro.train.gradient_parts import PARTS, part_of
from retro.train.memory import take_peak
from retro.train.peak import Peak
from retro.train.run import train
from retro.train.state import StepRecord, TrainState
from tests.train import releases
from tests.train.ranks import run_ranks


def lines(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == "train"]


@pytest.mark.parametrize("clip", [None, 0.05], ids=["free", "clipped"])
@pytest.mark.parametrize("retro", [False, True], ids=["gpt", "retro"])
def test_the_parts_add_up_to_the_norm_before_clipping(release: Path, tmp_path: Path, retro: bool, clip: float | None):
    run = train(releases.config(release, tmp_path, retro, log_every=1, gradient_clip=clip)).folder
    expected = {"embedding", "decoder", "cross_attention", "encoder"} if retro else {"embedding", "decoder"}
    for row in lines(run):
        parts = {name.removeprefix("grad_norm_"): value for name, value in row.items() if name.startswith("grad_norm_")}
        assert parts.keys() == expected
        assert math.sqrt(sum(value**2 for value in parts.values())) == pytest.approx(row["grad_norm"], rel=1e-4)
        assert row["clipped"] == float(clip is not None)


def test_every_parameter_belongs_to_a_part():
    names = {
        "embedding.weight": "embedding", "positions.weight": "embedding", "layers.3.attention.out.weight": "decoder",
        "layers.3.cross_attention.norm.weight": "cross_attention", "norm.weight": "decoder", "head.weight": "head",
        "encoder.layers.0.conditioning.attention.query.weight": "encoder", "encoder.norm.weight": "encoder",
    }  # fmt: skip
    assert {name: part_of(name) for name in names} == names
    assert set(names.values()) == set(PARTS)


def test_norms_are_taken_at_logged_steps_only(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from retro.train.callbacks import figures

    taken, original = [], figures.norms_by_part
    monkeypatch.setattr(figures, "norms_by_part", lambda parameters: taken.append(1) or original(parameters))
    run = train(releases.config(release, tmp_path, log_every=3, validate_every=0)).folder
    assert len(taken) == len(lines(run)) == 3


def test_a_window_counts_clipped_steps_waiting_and_sequences():
    rows: list[dict[str, Any]] = []
    window = LogWindow(4, rows.append, Utilisation(Peak(1.0, "table")))
    trainer: Any = SimpleNamespace(steps=9, callback_seconds={})
    for step, clipped, taken in ((1, True, True), (2, False, True), (3, True, False), (4, False, True)):
        trainer.callback_seconds = {"checkpointer": 1.5 * step, "validator": 2.0}
        record = StepRecord(
            TrainState(step), 2.0, math.nan if not taken else 20.0, 10, 0.1, math.nan if not taken else 1.0, 2.0,
            data_seconds=0.5, clipped=clipped, taken=taken, sequences=8,
        )  # fmt: skip
        window.on_step(trainer, record)
    (row,) = rows
    assert (row["loss"], row["clipped"], row["data_wait"]) == (2.0, 0.3333, 0.25)
    assert (row["sequences_per_s"], row["tokens_per_s"]) == (4.0, 3.8)
    assert (row["checkpoint_s"], row["validation_s"]) == (6.0, 2.0)


def test_seconds_outside_training_are_logged_with_the_next_line(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import time

    from retro.train.validation import Validation

    original = Validation.run

    def slow(*arguments: Any) -> Any:
        time.sleep(0.2)
        return original(*arguments)

    monkeypatch.setattr(Validation, "run", slow)
    run = train(releases.config(release, tmp_path, log_every=2, validate_every=4)).folder
    rows = lines(run)
    assert [row["validation_s"] >= 0.2 for row in rows] == [False, False, True, False]
    assert [row["checkpoint_s"] > 0 for row in rows][2]
    validations = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(row["seconds"] >= 0.2 for row in validations if row["event"] == "validation")


def test_memory_is_the_peak_since_the_last_time():
    cpu = torch.device("cpu")
    take_peak(cpu)
    before = take_peak(cpu).resident
    # Not by malloc, which a run of this process may have told to keep what is freed.
    with mmap.mmap(-1, 2**28) as block:
        np.frombuffer(block, np.uint8)[::4096] = 1
    peak = take_peak(cpu)
    assert peak.resident - before == pytest.approx(0.25, abs=0.05)
    assert (peak.allocated, peak.reserved) == (None, None)
    if Path("/proc/self/clear_refs").exists():
        assert take_peak(cpu).resident == pytest.approx(before, abs=0.05)


def test_memory_without_proc_is_that_of_the_whole_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "Path", lambda _: Path("/nowhere/at/all"))
    assert take_peak(torch.device("cpu")).resident > 0.05


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_of_a_gpu():
    device = torch.device("cuda", 0)
    take_peak(device)
    block = torch.ones(2**26, device=device)
    del block
    peak = take_peak(device)
    assert peak.allocated is not None and peak.reserved is not None
    assert peak.reserved >= peak.allocated >= 0.25
    again = take_peak(device)
    assert again.allocated is not None and again.allocated < 0.2


@pytest.mark.slow
@pytest.mark.parametrize(
    "parallel", [{"strategy": "ddp"}, {"strategy": "fsdp"}, {"tensor": 2}], ids=["ddp", "fsdp", "tensor"]
)
def test_parts_of_sharded_gradients_are_those_of_one_process(release: Path, tmp_path: Path, parallel: dict[str, Any]):
    one = lines(train(releases.config(release, tmp_path, name="one", steps=2, log_every=1)).folder)
    values = releases.settings(release, tmp_path, name="two", steps=2, log_every=1, parallel=parallel)
    log = tmp_path / "log.txt"
    assert run_ranks(releases.write_yaml(tmp_path / "two.yaml", values), 2, log) == [0, 0], log.read_text()
    two = lines(tmp_path / "two")
    for a, b in zip(one, two, strict=True):
        names = [name for name in a if name.startswith("grad_norm")]
        assert len(names) == 5
        assert {name: b[name] for name in names} == pytest.approx({name: a[name] for name in names}, rel=1e-3)
        assert b["memory_gib"] > 0.05
