"""Model FLOPs utilisation: what is counted, what it is relative to, and where it is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from retro.config.errors import ConfigError
from retro.config.train import TrainConfig
from retro.data.batch import RetroBatch
from retro.model.flops import sequence_flops
from retro.model.retro import RetroModel, is_retrieval_parameter
from retro.train import peak as peaks
from retro.train.callbacks.log_window import LogWindow
from retro.train.callbacks.utilisation import Utilisation, flops_of
from retro.train.peak import Peak, device_peak, known_gpu
from retro.train.run import train
from retro.train.state import StepRecord, TrainState
from tests.train import releases


def figures(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == "train"]


def test_a_gpt_spends_what_its_configuration_says(release: Path, tmp_path: Path):
    config = releases.config(
        release, tmp_path, retro=False, steps=4, log_every=1, validate_every=0, precision="fp32", peak_tflops=0.5
    )
    run = train(config).folder
    model = dataclasses.replace(config.model, vocab_size=releases.VOCABULARY)
    rows, before = figures(run), 0
    for row in rows:
        # The projections of scored positions only: their number is in the log.
        scored, before = row["tokens"] - before, row["tokens"]
        one = sequence_flops(model, config.sequence_length, scored=0)
        head = sequence_flops(model, config.sequence_length, scored=scored).head
        flops = config.global_batch * one.training + 3 * head
        assert row["model_tflops_per_s"] == pytest.approx(row["mfu"] * 0.5, rel=1e-3)
        # tokens_per_s is over the same seconds.
        assert row["model_tflops_per_s"] * 1e12 / row["tokens_per_s"] == pytest.approx(flops / scored, rel=5e-3)
    environment = json.loads((run / "environment.json").read_text())
    assert (environment["peak_tflops"], environment["peak_source"]) == (0.5, "configuration")


def test_retrieval_and_micro_batches_count(release: Path, tmp_path: Path):
    """Operations per scored token: more with retrieval, the same however the batch is cut."""

    def per_token(name: str, **changes: Any) -> float:
        changes = {"steps": 2, "log_every": 2, "validate_every": 0, "peak_tflops": 1.0, "name": name} | changes
        row = figures(train(releases.config(release, tmp_path, **changes)).folder)[-1]
        return row["model_tflops_per_s"] * 1e12 / row["tokens_per_s"]

    gpt, whole = per_token("gpt", retro=False), per_token("whole")
    assert per_token("cut", micro_batch=1) == pytest.approx(whole, rel=0.05)  # each pads to its own longest neighbor
    assert whole > 1.5 * gpt


def test_a_frozen_backbone_costs_less(release: Path, tmp_path: Path):
    config = releases.config(release, tmp_path)
    model = RetroModel(dataclasses.replace(config.model, vocab_size=releases.VOCABULARY))
    tokens = np.zeros((2, 32), np.int32)
    neighbors = np.ones((2, 4, 2, 16), np.int32)
    batch = RetroBatch(
        tokens_BN=tokens,
        targets_BN=tokens,
        loss_mask_BN=tokens == 0,
        neighbors_BLKR=neighbors,
        neighbor_mask_BLKR=neighbors == 1,
        chunk_ids_BL=np.zeros((2, 4), np.int64),
        sample_ids_B=np.zeros(2, np.int64),
    )
    counter, trainer = Utilisation(Peak(1.0, "table")), SimpleNamespace(model=model, steps=9)
    found = []
    for trained in (True, False):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained or is_retrieval_parameter(name))
        counter.on_start(trainer)  # type: ignore[arg-type]
        counter.on_micro_batch(trainer, batch)  # type: ignore[arg-type]
        counter.on_micro_batch(trainer, batch)  # type: ignore[arg-type]
        counter.on_step(trainer, None)  # type: ignore[arg-type]
        found.append(counter.step_flops)
    flops = flops_of(model.config, batch)
    assert found == [2 * flops.training, 2 * flops.retrieval_training]
    assert found[1] < found[0]


def test_the_share_is_that_of_the_window_and_survives_a_resume():
    def steps(window: LogWindow, counter: Utilisation, numbers: range) -> None:
        for step in numbers:
            counter.step_flops = step * 10**12
            record = StepRecord(TrainState(step), 1.0, 1.0, 1, 0.1, 1.0, 2.0)
            window.on_step(_Trainer, record)  # type: ignore[arg-type]

    straight: list[dict[str, Any]] = []
    resumed: list[dict[str, Any]] = []
    counter = Utilisation(Peak(10.0, "table"))
    steps(LogWindow(4, straight.append, counter), counter, range(1, 5))
    assert (straight[0]["model_tflops_per_s"], straight[0]["mfu"]) == (1.25, 0.125)  # 10 TFLOP in 8 s of 10 TFLOP/s
    first, second = (LogWindow(4, resumed.append, counter) for _ in range(2))
    steps(first, counter, range(1, 3))
    second.load_state(json.loads(json.dumps(first.state())))
    steps(second, counter, range(3, 5))
    assert resumed == straight


def test_a_window_of_an_earlier_version_counts_from_where_counting_began():
    rows: list[dict[str, Any]] = []
    counter = Utilisation(Peak(10.0, "table"))
    counter.step_flops = 4 * 10**12
    window = LogWindow(2, rows.append, counter)
    window.load_state({"loss_sum": 3.0, "tokens": 1, "seconds": 100.0})
    window.on_step(_Trainer, StepRecord(TrainState(2), 1.0, 1.0, 1, 0.1, 1.0, 2.0))  # type: ignore[arg-type]
    assert (rows[0]["loss"], rows[0]["model_tflops_per_s"], rows[0]["mfu"]) == (2.0, 2.0, 0.2)


class _Trainer:
    steps = 4
    callback_seconds: ClassVar[dict[str, float]] = {}


def test_peak_of_known_gpus():
    assert known_gpu("NVIDIA A100-SXM4-80GB", "bf16") == 312.0
    assert known_gpu("NVIDIA H100 PCIe", "bf16") == 756.0
    assert known_gpu("NVIDIA H100 80GB HBM3", "fp32") == 66.9
    assert known_gpu("NVIDIA H200", "bf16") == 989.4
    assert known_gpu("NVIDIA L40S", "bf16") == 362.05
    assert known_gpu("NVIDIA L4", "bf16") == 121.0
    assert known_gpu("NVIDIA A10G", "bf16") is None
    assert known_gpu("NVIDIA GH200 480GB", "bf16") == 989.4


def test_peak_of_a_gpu_is_looked_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    assert device_peak(torch.device("cuda"), "bf16") == Peak(312.0, "table")
    monkeypatch.setattr(peaks, "_measured", lambda *_: 7.0)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")  # TF32: not the table's number
    assert device_peak(torch.device("cuda"), "fp32") == Peak(7.0, "measured")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Unknown 9000")
    assert device_peak(torch.device("cuda"), "bf16") == Peak(7.0, "measured")


def test_peak_of_a_cpu_is_measured_once(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(peaks, "_seconds", lambda a, b: calls.append(a.shape[0]) or 0.02)
    peaks._measured.cache_clear()
    try:
        peak = device_peak(torch.device("cpu"), "fp32")
        assert peak == Peak(2 * 256**3 / 0.02 / 1e12, "measured")
        count = len(calls)
        assert count > 2
        assert device_peak(torch.device("cpu"), "fp32") == peak
        assert len(calls) == count
    finally:
        peaks._measured.cache_clear()


def test_configured_peak_wins_and_must_be_positive(release: Path, tmp_path: Path):
    assert device_peak(torch.device("cpu"), "bf16", 3.5) == Peak(3.5, "configuration")
    with pytest.raises(ConfigError, match="peak_tflops: expected above 0"):
        TrainConfig(name="x", release=str(release), peak_tflops=0.0)
