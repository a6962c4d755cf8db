"""retro train --plan: the papers' figures, exact parts against real training, refusals, the command."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from retro.cli.main import main
from retro.config.errors import ConfigError
from retro.config.loader import from_dict
from retro.config.model import ModelConfig
from retro.config.train import TrainConfig
from retro.model.presets import load_preset
from retro.model.retro import RetroModel
from retro.model.retrofit import freeze_backbone
from retro.optim.build import build_optimizer
from retro.train.plan.devices import GIB, KNOWN_DEVICES, MIB, Device, find_device
from retro.train.plan.parameters import PARTS, compared_gpt, count_parts, list_parameters
from retro.train.plan.plan import make_plan, plan_on
from retro.train.plan.remedies import check_fits, remedies, shortage
from retro.train.plan.report import render_plan, summary
from retro.train.plan.start import shortage_on
from retro.train.run import train
from tests.train import releases

ROOT = Path(__file__).resolve().parents[2]


def settings(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "name": "planned",
        "release": "nowhere/release.json",
        "model": {"vocab_size": 1003, "width": 64, "num_layers": 4, "num_heads": 4, "cross_attention_layers": [2, 4]},
        "sequence_length": 256,
        "global_batch": 16,
        "micro_batch": 4,
        "steps": 100,
        "warmup_steps": 10,
    }
    return from_dict(TrainConfig, {**values, **changes})


def preset(name: str) -> ModelConfig:
    """With the vocabulary of the study."""
    return load_preset(name, ("vocab_size=51200",))


def of_preset(name: str, **changes: Any) -> TrainConfig:
    config = settings(**{"sequence_length": 2048, "global_batch": 512, "micro_batch": 8, **changes})
    return dataclasses.replace(config, model=preset(name))


# Wang et al. 2023, table 9, in millions; "as there" has 2,048 learned positions, of which ours has none.
@pytest.mark.parametrize(
    ("size", "gpt", "retro", "digits"),
    [("small", 126, 148, 0), ("medium", 357, 410, 0), ("xl", 1300, 1500, -2), ("xxl", 8300, 9500, -2)],
)
def test_parameters_are_those_of_the_paper(size: str, gpt: int, retro: int, digits: int):
    for kind, expected in (("gpt", gpt), ("retro", retro)):
        model = preset(f"{size}_{kind}")
        found = sum(count_parts(list_parameters(model)).values())
        learned = 2048 * model.width if kind == "gpt" else 0
        assert round((found + learned) / 1e6, digits) == pytest.approx(expected, rel=0.016)


@pytest.mark.parametrize("size", ["small", "medium", "xl", "xxl"])
def test_extra_parameters_follow_the_formula(size: str):
    model = preset(f"{size}_retro")
    parts = count_parts(list_parameters(model))
    expected = (28 + 4 * len(model.cross_attention_layers)) * model.width**2
    assert parts["encoder"] + parts["cross_attention"] == pytest.approx(expected, rel=0.005)
    gpt = count_parts(list_parameters(compared_gpt(model)))
    assert gpt == {**parts, "encoder": 0, "cross_attention": 0}
    assert compared_gpt(model) == preset(f"{size}_gpt")


def test_parts_are_all_parameters():
    model = dataclasses.replace(settings().model, tie_embeddings=False)
    parts = count_parts(list_parameters(model))
    assert sum(parts.values()) == sum(p.numel() for p in RetroModel(model).parameters())
    assert list(parts) == list(PARTS)
    assert parts["head"] == parts["embedding"] == 1003 * 64


@pytest.mark.parametrize("optimizer_name", ["adamw", "muon"])
@pytest.mark.parametrize("frozen", [False, True], ids=["all", "frozen"])
def test_weights_gradients_optimizer_and_checkpoint_are_exact(frozen: bool, optimizer_name: str):
    config = settings(freeze_backbone=frozen, optimizer=optimizer_name)
    model = RetroModel(config.model)
    if frozen:
        freeze_backbone(model)
    optimizer = build_optimizer(config, model)
    tokens = torch.randint(0, 1003, (1, 256))
    neighbors = torch.randint(0, 1003, (1, 3, 2, 128))
    model(tokens, neighbors, targets_BN=tokens).loss.backward()
    optimizer.step()
    memory = plan_on(config, config.model, Device("CPU", None, None, True), 1).memory
    weights = sum(p.numel() * 4 for p in model.parameters())
    moments = sum(v.numel() * 4 for state in optimizer.state.values() for v in state.values() if v.ndim)
    assert memory.device["weights"] == weights
    assert memory.device["gradients"] == sum(p.grad.numel() * 4 for p in model.parameters() if p.grad is not None)
    assert memory.device["optimizer"] == moments
    assert memory.checkpoint == memory.staging == weights + moments


LAYOUTS: dict[str, dict[str, Any]] = {
    "fsdp": {"strategy": "fsdp"},
    "hybrid": {"strategy": "fsdp", "shard": 2},
    "tensor": {"tensor": 2},
    "fsdp_tensor": {"strategy": "fsdp", "tensor": 2},
}
# The first of 4 processes, without the others (a fake group): bytes of weights that it holds in every layout.
SHARES = """
import json, sys, torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from retro.config.loader import from_dict
from retro.config.train import TrainConfig
from retro.model.retro import RetroModel
from retro.train.parallel.fsdp import shard_model
from retro.train.parallel.mesh import TENSOR, build_mesh, lay_out, shard_mesh
from retro.train.parallel.tensor_parallel import apply_tensor_parallel
dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
found = {}
for name, values in json.loads(sys.argv[1]).items():
    config = from_dict(TrainConfig, values)
    layout = lay_out(config.parallel, 4)
    mesh = build_mesh(layout, "cpu")
    with torch.device("meta"):
        model = RetroModel(config.model)
    if layout.tensor > 1:
        apply_tensor_parallel(model, mesh[TENSOR])
    if layout.shard > 1:
        shard_model(model, shard_mesh(mesh, layout), config.parallel, config.precision)
    local = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
    found[name] = sum(4 * p.numel() for p in local)
print(json.dumps(found))
"""


def test_the_share_of_a_process_is_exact():
    """The first process's rows are never fewer than the others'."""
    model = dataclasses.asdict(settings().model)
    common = {"name": "x", "release": "r", "model": model, "global_batch": 16, "sequence_length": 256}
    runs = {name: {**common, "parallel": parallel} for name, parallel in LAYOUTS.items()}
    command = [sys.executable, "-c", SHARES, json.dumps(runs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    held = json.loads(done.stdout)
    for name, values in runs.items():
        config = from_dict(TrainConfig, values)
        memory = plan_on(config, config.model, Device("GPU", None, None, False), 4).memory
        # The plan shares scalars, FSDP whole rows.
        assert memory.device["weights"] == pytest.approx(held[name], rel=0.01), name
        assert memory.device["optimizer"] == 2 * memory.device["weights"]


def test_sharding_divides_and_accumulation_holds_whole_gradients():
    gpu = Device("GPU", None, None, False)
    ddp, fsdp = settings(), settings(parallel={"strategy": "fsdp"})
    plans = [plan_on(config, config.model, gpu, 2).memory.device for config in (ddp, fsdp)]
    assert plans[1]["optimizer"] == pytest.approx(plans[0]["optimizer"] / 2, rel=0.02)
    assert plans[0]["whole_gradients"] == 0
    assert plans[1]["whole_gradients"] == pytest.approx(plans[0]["gradients"], rel=0.02)
    often = settings(parallel={"strategy": "fsdp", "exchange": "micro_batch"})
    assert plan_on(often, often.model, gpu, 2).memory.device["whole_gradients"] == 0
    one_batch = dataclasses.replace(fsdp, micro_batch=8)
    assert plan_on(one_batch, one_batch.model, gpu, 2).memory.device["whole_gradients"] == 0
    kept = dataclasses.replace(fsdp, parallel=dataclasses.replace(fsdp.parallel, reshard_after_forward=False))
    assert plan_on(kept, kept.model, gpu, 2).memory.device["weight_copies"] > plans[1]["weight_copies"]


def test_work_of_the_study_in_device_hours():
    """Table 11 of Wang et al.: 12,000 A100-hours for the XL GPT over 330B tokens, a utilisation of 22 %. RETRO's
    operations are 45 % more by our count; the paper has 12 % more hours."""
    steps = round(330e9 / 2048 / 512)
    hours = {}
    for kind in ("gpt", "retro"):
        plan = {"device": "A100-80", "devices": 8, "mfu": 0.25}
        found = make_plan(of_preset(f"xl_{kind}", steps=steps, plan=plan)).work
        assert found.tokens == steps * 512 * 2048
        assert found.device_hours is not None and found.days is not None
        assert found.days * 24 * 8 == pytest.approx(found.device_hours)
        hours[kind] = found.device_hours
    utilisation = 0.25 * hours["gpt"] / 12000
    assert utilisation == pytest.approx(0.22, abs=0.01)
    assert hours["retro"] / hours["gpt"] == pytest.approx(1.45, abs=0.01)


def test_neighbor_share_scales_retrieval_only():
    whole, half, none = (
        make_plan(settings(plan={"neighbor_share": share, "device": "H100"})).work for share in (1.0, 0.5, 0.0)
    )
    assert none.flops_per_token == none.gpt_flops_per_token
    assert whole.flops_per_token - half.flops_per_token == pytest.approx(half.flops_per_token - none.flops_per_token)


def test_what_does_not_fit_is_refused_with_what_would():
    config = of_preset("xl_retro", plan={"device": "a100-40", "devices": 8})
    plan = make_plan(config)
    assert plan.fits is False
    with pytest.raises(ConfigError) as caught:
        check_fits(plan)
    line = str(caught.value)
    assert "\n" not in line
    assert re.search(r"needs [\d.]+ GiB and A100-40 has 39.4; the largest part is activations of the decoder", line)
    found = remedies(plan)
    assert 1 <= len(found) <= 3
    for text, total in found:
        assert total <= 39.4 * GIB
        assert f"{text} ({total / GIB:.1f} GiB)" in line
        changes: dict[str, Any] = {}
        for name, value in (item.split("=") for item in text.split()):
            section, _, field = name.rpartition(".")
            parsed = value.strip("[]").split(",") if value.startswith("[") else int(value) if value.isdigit() else value
            (changes.setdefault(section, {}) if section else changes)[field] = parsed
        changed = of_preset("xl_retro", plan={"device": "a100-40", "devices": 8}, **changes)
        assert make_plan(changed).memory.total == total


def test_what_no_setting_helps_says_so():
    plan = make_plan(of_preset("xxl_retro", plan={"device": "L4"}, micro_batch=1))
    assert remedies(plan) == []
    line = shortage(plan)
    assert line is not None and line.endswith("use more devices")


def test_an_unknown_memory_is_not_refused():
    plan = make_plan(of_preset("xxl_retro"))
    assert plan.fits is None
    check_fits(plan)
    assert "not known without plan.device" in render_plan(plan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": {"device": "H1000"}}, r"plan\.device: 'H1000' is not known; known: cpu, A100-40"),
        ({"plan": {"device": "H100"}, "device": "cpu"}, r"plan\.device: H100 is a GPU"),
        ({"plan": {"devices": 3}}, "global_batch: expected a multiple"),
        ({"plan": {"devices": 4}, "parallel": {"strategy": "fsdp", "shard": 3}}, r"parallel\.shard"),
        ({"model": {"width": 64}}, r"model\.vocab_size: not set.*plan\.vocab_size=NUMBER"),
        ({"model": {}, "init_from": "runs/nothing-there"}, r"init_from: .* is not there yet.*plan\.base"),
        ({"plan": {"mfu": 40}}, r"mfu: expected a share"),
        ({"plan": {"neighbor_share": 2}}, r"neighbor_share"),
        ({"plan": {"memory_gib": 0}}, r"memory_gib"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        make_plan(settings(**changes))


def test_base_of_a_retrofit_may_be_described():
    retrofit = {"base": "runs/not-there", "cross_attention_layers": [2, 4]}
    described = {"width": 64, "num_layers": 4, "num_heads": 4}
    plan = make_plan(settings(model={}, retrofit=retrofit, plan={"base": described, "vocab_size": 1003}))
    assert plan.model.cross_attention_layers == (2, 4)
    assert plan.parameters["encoder"] > 0
    assert plan.parameters["decoder"] == plan.gpt_parameters["decoder"]


def test_every_known_device_has_memory_and_a_peak():
    for name in KNOWN_DEVICES:
        found = find_device(name, None, "bf16", None, on_cpu=False)
        assert found.memory is not None and found.memory > 20 * GIB
        assert found.tflops is not None and found.tflops > 50
    assert find_device("h100", 10, "fp32", 55.0, on_cpu=False) == Device("H100", 10 * GIB, 55.0, False)


def test_a_run_on_a_gpu_that_is_too_small_is_warned():
    config = of_preset("xl_retro")
    assert shortage_on(config, Device("GPU", 500 * GIB, None, False), 8) == []
    (line,) = shortage_on(config, Device("Some GPU", 40 * GIB, None, False), 8)
    assert "Some GPU has 40.0" in line and "estimate" in line


def test_a_run_warns_before_it_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    config = releases.config(releases.build_release(tmp_path), tmp_path / "runs", steps=1, warmup_steps=1)
    monkeypatch.setattr("retro.train.run.warn_of_shortage", lambda config, device, devices: [f"short on {devices}"])
    assert train(config).state.step == 1
    said = capsys.readouterr().err
    assert said.index("warning: short on 1") < said.index("step 1/1")


def test_the_command(capsys: pytest.CaptureFixture[str]):
    file = "configs/train/tiny_retro.yaml"
    command = ["train", file, "--plan", "plan.vocab_size=4096", "plan.device=cpu", "peak_tflops=0.1"]
    assert main(command) == 0
    text = capsys.readouterr().out
    for word in ("Parameters", "cross-attention", "encoder", "FLOP per token", "optimizer state", "on disk"):
        assert word in text
    assert text.rstrip().splitlines()[-1].startswith("Plan: ")
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert found["memory_per_device"]["total"] == sum(
        size for name, size in found["memory_per_device"].items() if name != "total"
    )
    assert main([*command, "plan.memory_gib=0.01", "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["fits"] is False
    assert captured.err.startswith("error: memory: a device needs") and captured.err.count("\n") == 1
    assert main(["train", file, "--json"]) == 2
    assert "--json: is read with --plan only" in capsys.readouterr().err


def test_text_and_summary_agree():
    config = settings(
        plan={"device": "H100", "devices": 2}, activation_checkpointing=["decoder"], parallel={"strategy": "fsdp"}
    )
    plan = make_plan(config)
    text = render_plan(plan)
    assert f"{plan.memory.total / MIB:.2f}   of {79.1 * 1024:.1f}: fits" in text
    assert "without activation checkpointing" in text
    assert "weights sharded over 2" in text
    assert summary(plan) in text


@pytest.mark.slow
def test_the_peak_of_training_is_what_is_planned():
    """Live storages of real steps, GPT and RETRO, float32 and bfloat16, with and without activation checkpointing."""
    done = subprocess.run(
        [sys.executable, "benchmarks/memory_plan.py", "--small"], capture_output=True, text=True, timeout=170, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line.partition(" ")[2]) for line in done.stdout.splitlines() if "predicted" in line]
    assert len(rows) == 18
    assert max(abs(row["error"]) for row in rows) < 0.05
