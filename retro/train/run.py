"""One training run from its configuration: opens, resumes, trains, leaves a run folder behind."""

from __future__ import annotations

import logging
import signal
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from retro.artifacts.checkpoint_folders import STATE_NAME
from retro.artifacts.installation import installed_packages
from retro.artifacts.release import open_release
from retro.config.train import TrainConfig, result_fields
from retro.data.loader import split_batch
from retro.data.tokenizer import open_tokenizer
from retro.train.allocator import keep_freed_memory
from retro.train.answers import OpenScorer, open_scorer
from retro.train.assembly import OpenedRun, build_trainer
from retro.train.callbacks.early_stopping import EarlyStopping, has_ended
from retro.train.checkpointing.identity import Identity, check_identity
from retro.train.checkpointing.load import read_state
from retro.train.checkpointing.peers import open_peers
from retro.train.checkpointing.resume import newest_checkpoint
from retro.train.compiled import compile_trainer
from retro.train.data import open_data, resolve_vocabulary
from retro.train.distributed import open_processes
from retro.train.environment import describe_environment
from retro.train.first_lines import first_lines
from retro.train.initial import open_start
from retro.train.peak import device_peak
from retro.train.plan.start import warn_of_shortage
from retro.train.run_folder import RunFolder, silent_log
from retro.train.sessions import Session, record_session
from retro.train.signals import StopRequest, stop_on_signal
from retro.train.state import TrainState


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its folder and state, and the signal that stopped it (None = all steps are made)."""

    folder: Path
    state: TrainState
    stopped_by: signal.Signals | None


def train(config: TrainConfig, request: StopRequest | None = None, opener: OpenScorer | None = None) -> Outcome:
    """Train the run that `config` describes, from its newest checkpoint if it has one.

    request: where signals that ask to stop are noted; None = they are from here on, until this returns. opener: of the
    scorer of answers that early_stopping may need. Raises
    RetroError subclasses: ConfigError, ArtifactError (release or checkpoint unusable, or of another run),
    CheckpointError, TrainingDivergedError; Interrupted (KeyboardInterrupt) after a second signal.
    """
    if request is None:
        with stop_on_signal() as request:
            return train(config, request, opener)
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
    scorer = open_scorer(config, data.prepared, tokenizer, opener)
    identity = Identity(
        config=result_fields(config),
        release=release.fingerprint,
        tokenizer=tokenizer.fingerprint,
        init_from=None if initial is None else initial.fingerprint,
        questions=None if data.prepared is None else data.prepared.fingerprint,
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
            if peers.ask_main(partial(_ended_early, config, latest, step)):
                log.info(
                    f"{folder.path}: early stopping ended it at step {step}; nothing to do (a higher "
                    "early_stopping.patience goes on)"
                )
                return Outcome(folder.path, TrainState(step=step), None)
        peak = device_peak(processes.device, config.precision, config.peak_tflops)
        for line in warn_of_shortage(config, processes.device, processes.world):
            log.warning(line)
        opened = OpenedRun(config, data, identity, folder, processes, peers, log, peak, scorer)
        trainer = build_trainer(opened, latest, initial, request)
        if processes.is_main:
            folder.write_config(config)
            folder.write_release(release.path)
            code = folder.write_code()
            folder.write_environment(describe_environment(processes, peak, code), installed_packages())
            layout = {"processes": processes.world, "device": processes.device.type, "code": code}
            session = stack.enter_context(record_session(folder.sessions, step=trainer.state.step, **layout))
        else:
            session = Session(trainer.state.step)
        for line in first_lines(config, trainer, folder, release, data):
            log.info(line)
        if config.compile and not trainer.agree_to_stop():
            compile_trainer(trainer, log)
        began = trainer.state
        try:
            state = trainer.fit()
        finally:
            session.step = trainer.state.step
        stopped = signal.Signals(trainer.stop_signal) if trainer.stop_signal and state.step < config.steps else None
        for callback in trainer.callbacks:
            if trainer.ends_early and isinstance(callback, EarlyStopping):
                log.info(f"early stopping: {callback.describe()}")
        if stopped is None:
            log.info(f"finished: {state.step} steps, {state.tokens:,} tokens in {state.elapsed_s:.0f} s of training")
        elif state == began:
            session.reason = stopped.name
            log.info(f"stopped by {stopped.name} before a step was taken; nothing is lost, the same command goes on")
        else:
            session.reason = stopped.name
            log.info(f"stopped by {stopped.name} after step {state.step}; checkpoint written, the same command resumes")
    return Outcome(folder.path, state, stopped)


def _ended_early(config: TrainConfig, latest: Path, step: int) -> bool:
    """Whether early stopping ended the run at this checkpoint."""
    if config.early_stopping is None:
        return False
    _, callbacks = read_state(latest / STATE_NAME)
    return has_ended(config.early_stopping, callbacks.get(EarlyStopping.name), step)
