"""Refusing a plan that cannot fit, and what would make it fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from retro.config.errors import ConfigError
from retro.config.train import TrainConfig
from retro.train.plan.devices import GIB
from retro.train.plan.plan import Plan, plan_on

#: Parts of the memory as they are called in messages and tables.
PART_NAMES = {
    "weights": "weights (float32)",
    "gradients": "gradients (float32)",
    "optimizer": "optimizer state",
    "whole_gradients": "whole gradients between micro-batches",
    "weight_copies": "gathered or cast weights",
    "activations_decoder": "activations of the decoder",
    "activations_cross_attention": "activations of cross-attention",
    "activations_encoder": "activations of the encoder",
    "recomputed": "gradients of activations, recomputation",
    "loss": "logits and loss",
    "batch": "batch",
    "communication": "communication buffers",
    "runtime": "runtime and fragmentation",
}
_MOST_NAMED = 3


def shortage(plan: Plan) -> str | None:
    """One line on a plan that does not fit: what is too large, and what would help. None where it fits, or where the
    device's memory is not known."""
    if plan.fits is not False:
        return None
    assert plan.device.memory is not None
    parts = plan.memory.device
    largest = max(parts, key=lambda name: parts[name])
    line = (
        f"memory: a device needs {plan.memory.total / GIB:.1f} GiB and {plan.device.name} has "
        f"{plan.device.memory / GIB:.1f}; the largest part is {PART_NAMES[largest]}, {parts[largest] / GIB:.1f} GiB; "
    )
    found = remedies(plan)
    if not found:
        return line + "no micro_batch, activation_checkpointing, fsdp or tensor up to 8 suffices; use more devices"
    return line + "would fit: " + ", or ".join(f"{text} ({total / GIB:.1f} GiB)" for text, total in found)


def check_fits(plan: Plan) -> None:
    """Raise ConfigError with `shortage` for a plan that cannot fit."""
    line = shortage(plan)
    if line is not None:
        raise ConfigError(line)


def remedies(plan: Plan) -> list[tuple[str, int]]:
    """Overrides that make the plan fit, with the bytes of a device then: of each kind the first that suffices, few
    changes before many."""
    found: list[tuple[str, int]] = []
    for kind in _kinds(plan):
        for changes in kind:
            try:
                changed = plan_on(_change(plan.config, changes), plan.model, plan.device, plan.layout.devices)
            except ConfigError:
                continue  # sizes that do not divide
            if changed.fits:
                text = " ".join(f"{name}={_text(value)}" for name, value in changes.items())
                found.append((text, changed.memory.total))
                break
        if len(found) == _MOST_NAMED:
            break
    return found


def _kinds(plan: Plan) -> Iterator[list[dict[str, Any]]]:
    """Changes to try, by dotted name, of one kind each: what costs least time first."""
    config, layout = plan.config, plan.layout
    parts: tuple[str, ...] = ("decoder", "cross_attention", "encoder") if plan.model.is_retro else ("decoder",)
    done = set(config.activation_checkpointing)
    some = {"activation_checkpointing": tuple(part for part in parts if part in done or part == "decoder")}
    every = {"activation_checkpointing": parts} if set(parts) - done else {}
    sizes = [size for size in range(layout.micro_batch - 1, 0, -1) if layout.micro_batch % size == 0]
    smaller: list[dict[str, Any]] = [{"micro_batch": size} for size in sizes]
    least: dict[str, Any] = {"micro_batch": 1} if layout.micro_batch > 1 else {}
    tensors: list[dict[str, Any]] = [{"parallel.tensor": count} for count in (2, 4, 8) if count > layout.tensor]
    over_all = layout.replicas == 1 and layout.shard > 1
    fsdp: dict[str, Any] = {} if over_all or layout.devices == 1 else {"parallel.strategy": "fsdp"}
    yield smaller
    if plan.memory.device["whole_gradients"]:
        yield [{"parallel.exchange": "micro_batch"}]
    if every:
        yield [some, every]
        yield [{**every, **size} for size in smaller]
    if fsdp:
        yield [fsdp, {**fsdp, **some}, {**fsdp, **every}, *({**fsdp, **every, **size} for size in smaller)]
    if layout.devices > 1:
        yield [*tensors, *({**tensor, **every, **least} for tensor in tensors)]
        yield [{**tensor, **fsdp, **every, **least} for tensor in tensors]


def _change(config: TrainConfig, changes: dict[str, Any]) -> TrainConfig:
    parallel = {name.partition(".")[2]: value for name, value in changes.items() if "." in name}
    if parallel.get("strategy") == "fsdp":
        parallel["shard"] = None  # over all processes
    own = {name: value for name, value in changes.items() if "." not in name}
    return dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, **parallel), **own)


def _text(value: Any) -> str:
    return f"[{','.join(value)}]" if isinstance(value, tuple) else str(value)
