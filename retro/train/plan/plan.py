"""The plan of a run: everything that `retro train --plan` prints."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retro.config.errors import ConfigError
from retro.config.model import ModelConfig
from retro.config.train import TrainConfig
from retro.model.pretrained import open_pretrained
from retro.model.retrofit import check_freezable, retrofit_config
from retro.train.plan.devices import Device, find_device
from retro.train.plan.memory import Layout, Memory, find_layout, plan_memory
from retro.train.plan.parameters import compared_gpt, count_parts, list_parameters
from retro.train.plan.work import Work, plan_work


@dataclass(frozen=True)
class Plan:
    """model: that is trained, with its vocabulary; parameters, gpt_parameters: by part, of it and of the GPT of the
    same decoder."""

    config: TrainConfig
    model: ModelConfig
    device: Device
    layout: Layout
    parameters: dict[str, int]
    gpt_parameters: dict[str, int]
    memory: Memory
    work: Work

    @property
    def fits(self) -> bool | None:
        """Whether a device has the memory; None = its memory is not known."""
        return None if self.device.memory is None else self.memory.total <= self.device.memory

    @property
    def checkpoints_kept(self) -> int:
        """Checkpoints on disk at a time, at most: the newest ones, the best one, and one that is being written."""
        return self.config.keep_checkpoints + self.config.keep_best + 1

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers in bytes, tokens, operations and seconds."""
        return {
            "name": self.config.name,
            "kind": "retro" if self.model.is_retro else "gpt",
            "device": dataclasses.asdict(self.device),
            "layout": dataclasses.asdict(self.layout),
            "parameters": {**self.parameters, "total": sum(self.parameters.values())},
            "gpt_parameters": {**self.gpt_parameters, "total": sum(self.gpt_parameters.values())},
            "memory_per_device": {**self.memory.device, "total": self.memory.total},
            "activations_without_checkpointing": self.memory.unchecked,
            "fits": self.fits,
            "host_staging_per_process": self.memory.staging,
            "checkpoint": self.memory.checkpoint,
            "checkpoints_kept": self.checkpoints_kept,
            "mfu": self.config.plan.mfu,
            "neighbor_share": self.config.plan.neighbor_share,
            "work": dataclasses.asdict(self.work),
        }


def make_plan(config: TrainConfig) -> Plan:
    """Plan the run on the hardware of its section `plan`. Reads no release; of a base model the configuration only.

    Raises ConfigError for a vocabulary or base model that is not known, an unknown device, or numbers that do not
    divide. Whether it fits is in the plan.
    """
    model = planned_model(config)
    asked = config.plan
    device = find_device(asked.device, asked.memory_gib, config.precision, config.peak_tflops, config.device == "cpu")
    return plan_on(config, model, device, asked.devices)


def plan_on(config: TrainConfig, model: ModelConfig, device: Device, devices: int) -> Plan:
    """Plan the run of `model` on `devices` of `device`. Raises ConfigError for numbers that do not divide."""
    layout, gpt = find_layout(config, model, devices), compared_gpt(model)
    return Plan(
        config=config,
        model=model,
        device=device,
        layout=layout,
        parameters=count_parts(list_parameters(model)),
        gpt_parameters=count_parts(list_parameters(gpt)),
        memory=plan_memory(config, model, layout, device.on_cpu),
        work=plan_work(config, model, gpt, devices, device.tflops),
    )


def planned_model(config: TrainConfig) -> ModelConfig:
    """The model that the run will train, without its data. Raises ConfigError where that is not known yet."""
    model, path = config.model, config.init_from
    field = "init_from"
    if config.retrofit is not None:
        path, field = config.retrofit.base, "retrofit.base"
    if path is not None:
        if config.plan.base is not None:
            model = config.plan.base
        elif Path(path).exists():
            model = open_pretrained(path, field).config
        else:
            raise ConfigError(
                f"{field}: {path} is not there yet, so the plan does not know the model; give plan.base=FILE, e.g. one "
                "of configs/model"
            )
        if config.retrofit is not None:
            model = retrofit_config(model, config.retrofit)
    if config.freeze_backbone:
        check_freezable(model)
    if config.sequence_length % model.chunk_length:
        raise ConfigError(
            f"sequence_length: expected a multiple of the model's chunk_length {model.chunk_length}, found "
            f"{config.sequence_length}"
        )
    if model.vocab_size is None:
        if config.plan.vocab_size is None:
            raise ConfigError("model.vocab_size: not set, and a plan reads no tokenizer; give plan.vocab_size=NUMBER")
        model = dataclasses.replace(model, vocab_size=config.plan.vocab_size)
    return model
