"""One training run from its configuration: opens, resumes, trains, leaves a run folder behind."""

from __future__ import annotations

import logging
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from retro.artifacts.release import Release, open_release
from retro.config.loader import to_dict
from retro.config.train import TrainConfig, result_fields
from retro.data.loader import TrainLoader, split_batch
from retro.data.text_dataset import TextDataset
from retro.data.tokenizer import open_tokenizer
from retro.model.retro import count_parameters
from retro.model.retrofit import freeze_backbone
from retro.optim.build import build_optimizer
from retro.optim.schedules import warmup_cosine
from retro.train.allocator import keep_freed_memory
from retro.train.callbacks.base import Callback
from retro.train.callbacks.checkpointer import Checkpointer
from retro.train.callbacks.figures import Figures
from retro.train.callbacks.metrics_file import MetricsFile
from retro.train.callbacks.progress import Progress
from retro.train.callbacks.utilisation import Utilisation
from retro.train.callbacks.validator import Validator
from retro.train.checkpointing.identity import Identity, check_identity
from retro.train.checkpointing.peers import Peers, open_peers
from retro.train.checkpointing.resume import newest_checkpoint, restore, resume
from retro.train.compiled import compile_or_stay_eager, why_not_compiled
from retro.train.data import RunData, open_data, resolve_vocabulary
from retro.train.distributed import Processes, open_processes
from retro.train.environment import describe_environment, installed_packages
from retro.train.initial import InitialWeights, open_start
from retro.train.nonfinite import NonfinitePolicy, position_after_rollbacks
from retro.train.parallel.placement import build_model
from retro.train.peak import Peak, device_peak
from retro.train.plan.start import warn_of_shortage
from retro.train.randomness import seed_process
from retro.train.run_folder import RunFolder, silent_log
from retro.train.sessions import Session, record_session
from retro.train.signals import StopRequest, stop_on_signal
from retro.train.state import TrainState
from retro.train.trainer import Trainer
from retro.train.validation import Validation


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its folder and state, and the signal that stopped it (None = all steps are made)."""

    folder: Path
    state: TrainState
    stopped_by: signal.Signals | None


def train(config: TrainConfig, request: StopRequest | None = None) -> Outcome:
    """Train the run that `config` describes, from its newest checkpoint if it has one.

    request: where signals that ask to stop are noted; None = they are from here on, until this returns. Raises
    RetroError subclasses: ConfigError, ArtifactError (release or checkpoint unusable, or of another run),
    CheckpointError, TrainingDivergedError; Interrupted (KeyboardInterrupt) after a second signal.
    """
    if request is None:
        with stop_on_signal() as request:
            return train(config, request)
    processes = open_processes(config)
    split_batch(config.global_batch, config.micro_batch, processes.data_world)  # said before anything large is opened
    if processes.device.type == "cpu":
        keep_freed_memory()
    release = open_release(config.release)
    tokenizer = open_tokenizer(release.tokenizer)
    folder = RunFolder(config)
    peers = open_peers(processes)
    config, initial = open_start(config, release, tokenizer, newest_checkpoint(folder.checkpoints, peers))
    config = resolve_vocabulary(config, tokenizer)
    data = open_data(config, release, tokenizer)
    identity = Identity(
        config=result_fields(config),
        release=release.fingerprint,
        tokenizer=tokenizer.fingerprint,
        init_from=None if initial is None else initial.fingerprint,
    )
    with ExitStack() as stack:

        def hold() -> logging.Logger:
            if not processes.is_main:
                return silent_log()
            stack.enter_context(folder.lock())
            return stack.enter_context(folder.log())

        log = peers.agree(hold)  # the others look for checkpoints only when the main process holds the folder
        latest = newest_checkpoint(folder.checkpoints, peers)
        if latest is not None:
            step = peers.ask_main(partial(check_identity, latest, identity))
            if step >= config.steps:
                log.info(f"{folder.path}: finished at step {step}; nothing to do")
                return Outcome(folder.path, TrainState(step=step), None)
        peak = device_peak(processes.device, config.precision, config.peak_tflops)
        for line in warn_of_shortage(config, processes.device, processes.world):
            log.warning(line)
        trainer = _build_trainer(config, data, identity, folder, processes, peers, log, latest, initial, peak, request)
        if processes.is_main:
            folder.write_config(config)
            folder.write_release(release.path)
            code = folder.write_code()
            folder.write_environment(describe_environment(processes, peak, code), installed_packages())
            layout = {"processes": processes.world, "device": processes.device.type, "code": code}
            session = stack.enter_context(record_session(folder.sessions, step=trainer.state.step, **layout))
        else:
            session = Session(trainer.state.step)
        log.info(_summary(config, trainer, folder, release))
        for line in _padding(config, data) + _missing_neighbors(data):
            log.info(line)
        if config.compile and not trainer.agree_to_stop():
            _compile(trainer, log)
        began = trainer.state
        try:
            state = trainer.fit()
        finally:
            session.step = trainer.state.step
        stopped = signal.Signals(trainer.stop_signal) if trainer.stop_signal and state.step < config.steps else None
        if stopped is None:
            log.info(f"finished: {state.step} steps, {state.tokens:,} tokens in {state.elapsed_s:.0f} s of training")
        elif state == began:
            session.reason = stopped.name
            log.info(f"stopped by {stopped.name} before a step was taken; nothing is lost, the same command goes on")
        else:
            session.reason = stopped.name
            log.info(f"stopped by {stopped.name} after step {state.step}; checkpoint written, the same command resumes")
    return Outcome(folder.path, state, stopped)


def build_loader(config: TrainConfig, data: RunData, processes: Processes, start_sample: int = 0) -> TrainLoader:
    """This process's micro-batches from the given position of the sample stream."""
    return TrainLoader(
        data.train,
        global_batch=config.global_batch,
        micro_batch=config.micro_batch,
        rank=processes.data_rank,
        world=processes.data_world,
        seed=config.seed,
        start_sample=start_sample,
        num_workers=config.loader_workers,
    )


def _build_trainer(
    config: TrainConfig,
    data: RunData,
    identity: Identity,
    folder: RunFolder,
    processes: Processes,
    peers: Peers,
    log: logging.Logger,
    latest: Path | None,
    initial: InitialWeights | None,
    peak: Peak,
    request: StopRequest,
) -> Trainer:
    # The same weights in every process and layout, and for GPT and RETRO where both have them.
    model = build_model(config.model, processes, config.seed)
    model.checkpointed = frozenset(config.activation_checkpointing)
    if initial is not None and latest is None:
        assert initial.fill is not None  # only a run with a checkpoint does without
        initial.fill(model)
    if config.freeze_backbone:
        freeze_backbone(model)
    seed_process(config.seed, processes)
    optimizer = build_optimizer(config, model)
    callbacks = build_callbacks(config, data, identity, folder, processes, peers, log, peak)
    state = TrainState()
    if latest is not None:
        state = resume(
            latest,
            model=model,
            optimizer=optimizer,
            callbacks=callbacks,
            identity=identity,
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
            identity=identity,
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
        loader=build_loader(config, data, processes, state.samples),
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


def build_callbacks(
    config: TrainConfig,
    data: RunData,
    identity: Identity,
    folder: RunFolder,
    processes: Processes,
    peers: Peers,
    log: logging.Logger,
    peak: Peak,
) -> list[Callback]:
    """The observers that `config` asks for, in the order in which they must be called."""
    figures = Figures(config.log_every)
    callbacks: list[Callback] = [figures]
    if processes.is_main:
        utilisation = Utilisation(peak)
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
        callbacks.append(Progress(log, utilisation))
    if data.validation is not None:
        validation = Validation(
            data.validation,
            data.byte_lengths,
            sequences=config.validate_sequences,
            batch=config.micro_batch or max(1, config.global_batch // processes.data_world),
        )
        callbacks.append(Validator(validation, config.validate_every))
    callbacks.append(
        Checkpointer(
            folder.checkpoints,
            identity,
            every=config.checkpoint_every,
            keep=config.keep_checkpoints,
            keep_best=config.keep_best,
            asynchronous=config.async_checkpoints,
            keep_start=config.on_nonfinite == "rollback",
            peers=peers,
        )
    )
    if config.profile is not None:
        from retro.train.callbacks.profiler import Profiler

        callbacks.append(Profiler(folder.profile, config.profile, config.steps, log))
    return callbacks


def _compile(trainer: Trainer, log: logging.Logger) -> None:
    started = time.perf_counter()
    # Straight from the data set: the loader's position must stay where it is.
    loader = trainer.loader
    batch = loader.dataset.__getitems__([i % len(loader.dataset) for i in range(loader.micro_batch)])
    trainer.model.train()
    processes = trainer.processes
    sharded = processes.sharded  # then a pass without the exchange of gradients would leave them behind
    if processes.mesh is not None:
        reason = why_not_compiled(processes.device)
        failed = [rank for rank, (works,) in enumerate(processes.gather([float(not reason)])) if not works]
        if failed:
            log.warning(f"compile: true does not work in process(es) {failed}, training runs without it ({reason})")
            return
    rehearse = partial(trainer.forward_backward, batch, last=sharded)
    if compile_or_stay_eager(trainer.model, rehearse, log.warning, by_layer=sharded):
        log.info(f"compiled in {time.perf_counter() - started:.0f} s (not counted as training time)")


def _padding(config: TrainConfig, data: RunData) -> list[str]:
    """Say which share of the training positions is padding, and what would mend it."""
    if not isinstance(data.train, TextDataset):
        return []
    share = data.train.padding_share()
    line = f"packing {config.packing}: {share:.2%} of the positions hold padding"
    return [line + ("; packing=documents has none" if config.packing == "chunks" and share >= 0.005 else "")]


def _missing_neighbors(data: RunData) -> list[str]:
    """Say how many neighbors the training chunks lack, on a sample of sequences, and what would mend it."""
    if not isinstance(data.train, TextDataset):
        return []
    found = data.train.shortage()
    if found.excluded + found.unstored == 0:
        return []
    excluded, unstored = found.excluded / found.entries, found.unstored / found.entries
    line = f"neighbors missing on {found.chunks:,} sampled chunks: {unstored:.2%} were not found"
    line += f", {excluded:.2%} are of other documents of the sequence"
    return [line + ("; raise neighbors.keep of the preparation" if found.excluded else "")]


def _summary(config: TrainConfig, trainer: Trainer, folder: RunFolder, release: Release) -> str:
    kind = "RETRO" if config.model.is_retro else "GPT"
    processes, loader, state = trainer.processes, trainer.loader, trainer.state
    what = f"resuming at step {state.step}" if state.step else "training"
    frozen = sum(p.numel() for p in trainer.model.parameters() if not p.requires_grad)
    size = f"{count_parameters(trainer.model):,} parameters" + (f" ({frozen:,} of them frozen)" if frozen else "")
    return (
        f"{folder.path}: {what}: {kind}, {size}, {config.steps} steps of "
        f"{config.global_batch} x {config.sequence_length} tokens ({loader.micro_batches_per_step} micro-batch(es) of "
        f"{loader.micro_batch} on {processes.world} process(es), {processes.device.type}, {config.precision}), "
        f"{len(loader.dataset):,} sequences of release {release.fingerprint}"
    )
