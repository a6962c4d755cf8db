"""Puts a run together: model, optimizer, loader, observers, trainer."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from retro.config.loader import to_dict
from retro.config.qa import parse_arm
from retro.config.train import TrainConfig
from retro.data.length_order import LengthSortedStream
from retro.data.loader import TrainLoader
from retro.data.order import SampleStream
from retro.data.qa.dataset import QaDataset
from retro.model.retrofit import freeze_backbone, freeze_retrieval
from retro.optim.build import build_optimizer
from retro.optim.schedules import warmup_cosine
from retro.train.answers import AnswerScorer
from retro.train.callbacks.base import Callback
from retro.train.callbacks.checkpointer import Checkpointer
from retro.train.callbacks.early_stopping import EarlyStopping
from retro.train.callbacks.figures import Figures
from retro.train.callbacks.metrics_file import MetricsFile
from retro.train.callbacks.progress import Progress
from retro.train.callbacks.utilisation import Utilisation
from retro.train.callbacks.validator import Validator
from retro.train.checkpointing.identity import Identity
from retro.train.checkpointing.peers import Peers
from retro.train.checkpointing.resume import restore, resume
from retro.train.data import RunData
from retro.train.distributed import Processes
from retro.train.initial import InitialWeights
from retro.train.nonfinite import NonfinitePolicy, position_after_rollbacks
from retro.train.parallel.placement import build_model
from retro.train.peak import Peak
from retro.train.randomness import seed_process
from retro.train.run_folder import RunFolder
from retro.train.signals import StopRequest
from retro.train.state import TrainState
from retro.train.trainer import Trainer
from retro.train.validation import Validation


@dataclass(frozen=True)
class OpenedRun:
    """What a run is built of, in one process of it.

    config: complete, with model and vocabulary; identity: what its checkpoints belong to; log: silent in processes that
    are not the main one; scorer: of the answers that the model writes at validations, None = it writes none.
    """

    config: TrainConfig
    data: RunData
    identity: Identity
    folder: RunFolder
    processes: Processes
    peers: Peers
    log: logging.Logger
    peak: Peak
    scorer: AnswerScorer | None = None


def build_loader(config: TrainConfig, data: RunData, processes: Processes, start_sample: int = 0) -> TrainLoader:
    """This process's micro-batches from the given position of the sample stream."""
    stream = None
    if config.qa is not None and config.qa.sort_batches > 1:
        assert isinstance(data.train, QaDataset)
        stream = LengthSortedStream(
            SampleStream(len(data.train), config.seed),
            data.train.estimated_lengths(),
            batch=config.global_batch,
            window=config.qa.sort_batches,
            seed=config.seed,
        )
    return TrainLoader(
        data.train,
        global_batch=config.global_batch,
        micro_batch=config.micro_batch,
        rank=processes.data_rank,
        world=processes.data_world,
        seed=config.seed,
        start_sample=start_sample,
        num_workers=config.loader_workers,
        stream=stream,
    )


def build_trainer(
    opened: OpenedRun, latest: Path | None, initial: InitialWeights | None, request: StopRequest
) -> Trainer:
    """The trainer, at the checkpoint `latest`, or at the start from the `initial` weights (None = drawn ones)."""
    config, folder, processes, peers = opened.config, opened.folder, opened.processes, opened.peers
    # The same weights in every process and layout, and for GPT and RETRO where both have them.
    model = build_model(config.model, processes, config.seed)
    model.checkpointed = frozenset(config.activation_checkpointing)
    if initial is not None and latest is None:
        assert initial.fill is not None  # only a run with a checkpoint does without
        initial.fill(model)
    if config.freeze_backbone:
        freeze_backbone(model)
    if config.qa is not None and config.retrieval and not parse_arm(config.qa.arm).in_encoder:
        freeze_retrieval(model)
    seed_process(config.seed, processes)
    optimizer = build_optimizer(config, model)
    callbacks = build_callbacks(opened)
    state = TrainState()
    if latest is not None:
        state = resume(
            latest,
            model=model,
            optimizer=optimizer,
            callbacks=callbacks,
            identity=opened.identity,
            processes=processes,
            peers=peers,
        )
        at = state
        state = peers.ask_main(lambda: position_after_rollbacks(at, folder.incidents))
    elif processes.is_main:
        folder.incidents.unlink(missing_ok=True)  # of a run whose checkpoints were removed

    def go_back() -> TrainState:
        for callback in callbacks:
            if isinstance(callback, Checkpointer):
                callback.finish()
        return restore(
            folder.checkpoints,
            model=model,
            optimizer=optimizer,
            callbacks=callbacks,
            identity=opened.identity,
            processes=processes,
            peers=peers,
        )

    schedule = partial(
        warmup_cosine,
        steps=config.steps,
        warmup_steps=config.warmup_steps,
        peak=config.learning_rate,
        minimum=config.min_learning_rate,
        decay_steps=config.decay_steps,
    )
    return Trainer(
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        loader=build_loader(config, opened.data, processes, state.samples),
        processes=processes,
        steps=config.steps,
        gradient_clip=config.gradient_clip,
        callbacks=callbacks,
        state=state,
        nonfinite=NonfinitePolicy(
            config.on_nonfinite,
            config.nonfinite_limit,
            history=folder.incidents if processes.is_main else None,
            restore=go_back,
        ),
        request=request,
    )


def build_callbacks(opened: OpenedRun) -> list[Callback]:
    """The observers that the configuration asks for, in the order in which they must be called."""
    config, data, folder, processes = opened.config, opened.data, opened.folder, opened.processes
    figures = Figures(config.log_every)
    callbacks: list[Callback] = [figures]
    if processes.is_main:
        utilisation = Utilisation(opened.peak)
        callbacks += [utilisation, MetricsFile(folder.metrics, config.log_every, utilisation, figures)]
        if config.wandb != "disabled":
            from retro.train.callbacks.weights_and_biases import WeightsAndBiases

            callbacks.append(
                WeightsAndBiases(
                    every=config.log_every,
                    mode=config.wandb,
                    project=config.wandb_project,
                    run_name=config.name,
                    folder=folder.path,
                    config=to_dict(config),
                    utilisation=utilisation,
                    figures=figures,
                )
            )
        if config.tensorboard:
            from retro.train.callbacks.tensorboard import TensorBoard

            callbacks.append(TensorBoard(folder.tensorboard, config.log_every, utilisation, figures))
        callbacks.append(Progress(opened.log, utilisation))
    if data.validation is not None:
        validation = Validation(
            data.validation,
            data.byte_lengths,
            sequences=config.validate_sequences,
            batch=config.micro_batch or max(1, config.global_batch // processes.data_world),
        )
        callbacks.append(Validator(validation, config.validate_every, opened.scorer))
    stopping = config.early_stopping
    if stopping is not None:
        callbacks.append(EarlyStopping(stopping))
    callbacks.append(
        Checkpointer(
            folder.checkpoints,
            opened.identity,
            every=config.checkpoint_every,
            keep=config.keep_checkpoints,
            keep_best=config.keep_best,
            asynchronous=config.async_checkpoints,
            keep_start=config.on_nonfinite == "rollback",
            peers=opened.peers,
            metric="loss" if stopping is None else stopping.metric,
        )
    )
    if config.profile is not None:
        from retro.train.callbacks.profiler import Profiler

        callbacks.append(Profiler(folder.profile, config.profile, config.steps, opened.log))
    return callbacks
