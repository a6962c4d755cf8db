"""What a run that starts says about its memory."""

from __future__ import annotations

import torch

from retro.config.train import TrainConfig
from retro.train.plan.devices import Device
from retro.train.plan.plan import plan_on
from retro.train.plan.remedies import shortage


def warn_of_shortage(config: TrainConfig, device: torch.device, devices: int) -> list[str]:
    """A line if a GPU's memory will not do by calculation, else none: it is an estimate, so the run is tried all the
    same. config: with the model that is trained, and its vocabulary."""
    if device.type != "cuda":
        return []
    found = torch.cuda.get_device_properties(device)
    return shortage_on(config, Device(found.name, found.total_memory, None, on_cpu=False), devices)


def shortage_on(config: TrainConfig, device: Device, devices: int) -> list[str]:
    """As `warn_of_shortage`, for a device that is described."""
    line = shortage(plan_on(config, config.model, device, devices))
    return [] if line is None else [f"{line}; this is an estimate (retro train --plan), training is tried"]
