"""Short trainings without a run folder, for comparing layouts of processes: losses, gradient norms, final weights."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from retro.artifacts.release import open_release
from retro.config.loader import from_dict
from retro.config.train import TrainConfig
from retro.data.tokenizer import open_tokenizer
from retro.model.retrofit import freeze_backbone
from retro.model.shards import row_orders
from retro.nn.shards import gather_whole
from retro.optim.build import build_optimizer
from retro.optim.schedules import warmup_cosine
from retro.train.assembly import build_loader
from retro.train.callbacks.base import Callback
from retro.train.data import open_data, resolve_vocabulary
from retro.train.distributed import open_processes
from retro.train.parallel.placement import build_model
from retro.train.randomness import seed_process
from retro.train.state import StepRecord, ValidationRecord
from retro.train.trainer import Trainer
from retro.train.validation import Validation
from tests.train import releases


@dataclass
class Curve:
    """What a training did; weights float32 by name, whole."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    validations: list[float] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    #: Calls of collectives in the last step, by name.
    collectives: dict[str, int] = field(default_factory=dict)
    #: Scalars that this process holds of the parameters.
    held: int = 0


class _Recorder(Callback):
    name = "recorder"
    every_process = True

    def __init__(self, curve: Curve, validation: Validation | None, every: int) -> None:
        self.curve, self.validation, self.every = curve, validation, every

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        self.curve.losses.append(record.loss)
        self.curve.norms.append(record.grad_norm)
        if self.validation is not None and record.state.step % self.every == 0:
            trainer.announce_validation(self.validation.run(trainer.model, trainer.processes, record.state))

    def on_validation(self, trainer: Trainer, record: ValidationRecord) -> None:
        self.curve.validations.append(record.loss)


class _WithoutNeighbors:
    """A data set some of whose sequences lack every neighbor."""

    def __init__(self, dataset: Any, which: str) -> None:
        self.dataset, self.which = dataset, which

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, ids: Any) -> Any:
        batch = self.dataset.__getitems__(ids)
        masked = np.ones(len(ids), bool) if self.which == "all" else np.asarray(ids) % 2 == 0
        batch.neighbor_mask_BLKR[masked] = False
        return batch


def train_curve(settings: dict[str, Any], without_neighbors: str = "", rehearse: bool = False) -> Curve:
    """Train as `settings` (releases.settings) say, without files. Every process of the default group calls it.

    without_neighbors: "some" or "all" sequences have none; rehearse: with torch.compile as the run compiles.
    """
    config = from_dict(TrainConfig, settings)
    processes = open_processes(config)
    release = open_release(config.release)
    tokenizer = open_tokenizer(release.tokenizer)
    config = resolve_vocabulary(config, tokenizer)
    data = open_data(config, release, tokenizer)
    if without_neighbors:
        object.__setattr__(data, "train", _WithoutNeighbors(data.train, without_neighbors))
    model = build_model(config.model, processes, config.seed)
    model.checkpointed = frozenset(config.activation_checkpointing)
    if config.freeze_backbone:
        freeze_backbone(model)
    seed_process(config.seed, processes)
    optimizer = build_optimizer(config, model)
    schedule = partial(
        warmup_cosine, steps=config.steps, warmup_steps=2, peak=config.learning_rate, minimum=config.min_learning_rate
    )
    curve = Curve()
    validation = None
    if data.validation is not None:
        count = config.validate_sequences
        validation = Validation(data.validation, data.byte_lengths, sequences=count, batch=1)
    trainer = Trainer(
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        loader=build_loader(config, data, processes),
        processes=processes,
        steps=config.steps,
        gradient_clip=config.gradient_clip,
        callbacks=[_Recorder(curve, validation, config.validate_every)],
    )
    if rehearse:
        import logging

        from retro.train.compiled import compile_trainer

        compile_trainer(trainer, logging.getLogger("compile"))
    curve.held = sum(local(p).numel() for p in model.parameters())
    last = trainer.steps
    trainer.steps = last - 1
    trainer.fit()
    trainer.steps = last
    if rehearse:  # a compiled program cannot be looked into
        trainer.fit()
    else:
        with counted_collectives() as counts:
            trainer.fit()
        curve.collectives = dict(counts)
    orders = row_orders(model)
    curve.weights = {name: whole(p, orders.get(name)).numpy().copy() for name, p in model.named_parameters()}
    return curve


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor, row_order: Tensor | None = None) -> Tensor:
    gathered = gather_whole(tensor.detach())
    return gathered if row_order is None else torch.empty_like(gathered).index_copy_(0, row_order, gathered)


@contextmanager
def counted_collectives() -> Iterator[Counter[str]]:
    """Counts gathers and sums of this process by the name of the operation that torch's dispatcher sees."""
    from torch.utils._python_dispatch import TorchDispatchMode

    counts: Counter[str] = Counter()

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace in ("c10d", "_c10d_functional"):
                counts[func.__name__.split(".")[0]] += 1
            return func(*args, **(kwargs or {}))

    with Mode():
        yield counts


def train_curves(rank: int, world: int, jobs: list[tuple[dict[str, Any], str]]) -> list[Curve]:
    """`train_curve` of every job, in a process of tests.train.worlds."""
    join(rank, world)
    return [train_curve(*job) for job in jobs]


def train_compiled(rank: int, world: int, settings: dict[str, Any]) -> Curve:
    """`train_curve` with compiled layers."""
    join(rank, world)
    return train_curve(settings, rehearse=True)


def join(rank: int, world: int) -> None:
    """Make accelerate see a process of torchrun, where the default group is there already."""
    sizes = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ.update({name: str(value) for name, value in sizes.items()}, MASTER_ADDR="127.0.0.1", MASTER_PORT="1")


def parity_settings(release: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a few steps that every part of the model takes part in."""
    values = releases.settings(release, Path("unused"), changes.pop("retro", True), steps=6, validate_every=3)
    model = {**values["model"], **changes.pop("model", {})}
    return {**values, "model": model, "micro_batch": 1, "global_batch": 4, **changes}
