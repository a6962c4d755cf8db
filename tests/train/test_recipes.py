"""Every configuration of configs/train: loads, fits the hardware it is written for, and says what the plan says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from retro.config.loader import load_config, to_dict
from retro.config.train import TrainConfig
from retro.train.plan.plan import make_plan
from retro.train.plan.report import render_plan, summary

ROOT = Path(__file__).resolve().parents[2]
RECIPES = {path.stem: path for path in sorted((ROOT / "configs" / "train").glob("*.yaml"))}
#: Those for GPUs.
LARGE = [name for name in RECIPES if name.startswith(("small", "medium", "xl", "xxl", "instruct"))]
# Wang et al. 2023, table 10: learning rate, lowest, batch, steps.
STUDY = {
    "small": (6e-4, 6e-5, 256, 750_000),
    "medium": (3e-4, 3e-5, 256, 750_000),
    "xl": (2e-4, 2e-5, 512, 375_000),
    "xxl": (1e-4, 1e-5, 512, 375_000),
}
# Wang et al. 2024, tables 4 and 5: parameters in billions without and with retrieval, then as above.
INSTRUCT = {
    "823m": (0.823, 0.878, 2e-5, 2e-6, 128, 195_200),
    "2b": (2.25, 2.5, 2e-5, 2e-6, 256, 97_600),
    "8b": (8.5, 9.5, 1e-5, 1e-6, 512, 48_800),
    "22b": (22, 24, 1e-5, 1e-6, 512, 48_800),
    "43b": (43, 48, 9e-6, 9e-7, 768, 32_500),
}


def load(name: str) -> TrainConfig:
    return load_config(TrainConfig, RECIPES[name])


def header(name: str) -> dict[str, str]:
    """Label -> text of the comment that a recipe begins with."""
    found: dict[str, str] = {}
    label = ""
    for line in RECIPES[name].read_text().splitlines():
        if not line.startswith("#"):
            break
        first = re.match(r"# (\w+): +(.*)", line)
        if first:
            label = first[1]
            found[label] = first[2]
        else:
            found[label] += " " + line.lstrip("# ")
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_loads_and_fits_its_hardware(name: str):
    config = load(name)
    assert config.name == name.replace("_", "-")
    plan = make_plan(config)
    assert plan.fits is True
    assert plan.device.memory is not None
    if name in LARGE:
        assert plan.memory.total < 0.85 * plan.device.memory, "too close for an estimate"
    assert render_plan(plan)
    assert {"Purpose", "Hardware", "Cost"} <= set(header(name))


@pytest.mark.parametrize("name", LARGE)
def test_header_says_what_the_plan_says(name: str):
    config, says = load(name), header(name)
    assert f"Plan: {says['Plan']}" == summary(make_plan(config)), f"retro train {RECIPES[name]} --plan has the figures"
    assert says["Launch"].startswith("retro launch configs/launch/")
    assert says["Launch"].endswith(f"-- retro train configs/train/{name}.yaml")
    launch = re.search(r"configs/launch/\w+\.yaml", says["Launch"])
    assert launch is not None and (ROOT / launch[0]).is_file()
    nodes = re.search(r"nodes=(\d+)", says["Launch"])
    machines = int(nodes[1]) if nodes else 1
    assert config.plan.devices == 8 * machines
    assert ("one machine" if machines == 1 else f"{machines} machines") in says["Hardware"]


@pytest.mark.parametrize("name", [name for name in LARGE if not name.startswith("instruct") and "retrofit" not in name])
def test_hyperparameters_of_the_study(name: str):
    config = load(name)
    rate, lowest, batch, steps = STUDY[name.split("_")[0]]
    assert (config.learning_rate, config.min_learning_rate) == (rate, lowest)
    assert (config.global_batch, config.steps) == (batch, steps)
    assert config.global_batch * config.steps == 192_000_000
    assert config.warmup_steps == round(162_761 / batch)
    assert config.decay_steps == 166_400_000 / batch
    assert (config.weight_decay, config.beta1, config.beta2, config.gradient_clip) == (0.1, 0.9, 0.95, 1.0)
    assert config.sequence_length == 2048
    assert config.model.init_std == 0.023


@pytest.mark.parametrize("kind", ["gpt", "retro"])
@pytest.mark.parametrize("size", INSTRUCT)
def test_hyperparameters_of_instruct_retro(size: str, kind: str):
    config = load(f"instruct_{size}_{kind}")
    without, with_retrieval, rate, lowest, batch, steps = INSTRUCT[size]
    assert (config.learning_rate, config.min_learning_rate) == (rate, lowest)
    assert (config.global_batch, config.steps) == (batch, steps)
    assert config.warmup_steps == round(16_667 / batch)
    assert config.decay_steps == pytest.approx(23_750_000 / batch, abs=0.5)
    assert config.steps * batch * config.sequence_length == pytest.approx(100e9, rel=0.03)
    parameters = sum(make_plan(config).parameters.values())
    assert parameters / 1e9 == pytest.approx(with_retrieval if kind == "retro" else without, rel=0.035)


@pytest.mark.parametrize(
    "pair",
    [
        *((f"{size}_gpt", f"{size}_retro") for size in ("smoke", "demo", "laptop", "tiny", *STUDY)),
        ("xxl_gpt_tensor", "xxl_retro_tensor"),
        ("small_retro", "small_fast"),
        ("medium_retro", "medium_fast"),
        ("retrofit_gpt", "retrofit_retro"),
        *((f"instruct_{size}_gpt", f"instruct_{size}_retro") for size in INSTRUCT),
    ],
    ids="-".join,
)
def test_pairs_differ_in_retrieval_only(pair: tuple[str, str]):
    first, second = (to_dict(load(name)) for name in pair)
    for stored in (first, second):
        for field in ("name", "activation_checkpointing"):
            stored.pop(field)
        for section in ("model", "retrofit"):
            for field in ("cross_attention_layers", "encoder", "gate"):
                if stored[section]:
                    stored[section].pop(field, None)
    assert first == second


def test_tensor_parallel_variants_are_the_same_run():
    for kind in ("gpt", "retro"):
        one, other = (_without(load(f"xxl_{kind}{suffix}")) for suffix in ("", "_tensor"))
        assert one == other


def _without(config: TrainConfig) -> dict[str, Any]:
    plain = dataclasses.replace(config, name="x", micro_batch=None, activation_checkpointing=())
    stored = to_dict(plain)
    stored.pop("parallel")
    return stored


@pytest.mark.parametrize("folder", ["train", "model"])
def test_the_documentation_names_every_configuration(folder: str):
    text = (ROOT / "docs" / "training.md").read_text()
    stems = sorted(path.stem for path in (ROOT / "configs" / folder).glob("*.yaml"))
    assert [stem for stem in stems if f"`{stem}`" not in text] == []
