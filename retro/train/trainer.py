"""The training loop. Logs, validation and checkpoints are callbacks; no method's flag lives here."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from retro.data.batch import RetroBatch
from retro.data.loader import TrainLoader
from retro.data.order import join_hashes, split_hash
from retro.model.retro import RetroModel
from retro.train.callbacks.base import Callback
from retro.train.distributed import Processes
from retro.train.nonfinite import BadLoss, BadStep, NonfinitePolicy
from retro.train.signals import StopRequest
from retro.train.state import StepRecord, TrainState, ValidationRecord


class _Share(NamedTuple):
    """What a process contributes to a step. signal: 0 = none; first_bad: number of its first micro-batch whose loss is
    not finite, -1 = none; data_seconds: it waited for micro-batches; hash: of its samples, split."""

    loss_sum: float
    tokens: float
    signal: float
    first_bad: float
    data_seconds: float
    hash: Sequence[float]

    @classmethod
    def of(cls, row: Sequence[float]) -> _Share:
        """From the numbers that processes exchange."""
        loss_sum, tokens, signal, first_bad, data_seconds, *parts = row
        return cls(loss_sum, tokens, signal, first_bad, data_seconds, parts)


class Trainer:
    """Takes optimizer steps until `steps` are made or a signal asks to stop.

    The loss of a step is the sum over the scored tokens of the global batch divided by their number, over all
    micro-batches and processes (not a mean of means): gradients of sums are accumulated, averaged over the processes,
    and scaled once.

    model: on the device, unwrapped; optimizer: over its parameters; schedule: learning rate of a 0-based step;
    loader: positioned at state.samples; gradient_clip: largest norm of the whole gradient, None = not clipped;
    nonfinite: what becomes of steps whose numbers are not finite, None = the run stops; request: where signals are
    noted.
    """

    def __init__(
        self,
        *,
        model: RetroModel,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        loader: TrainLoader,
        processes: Processes,
        steps: int,
        gradient_clip: float | None = 1.0,
        callbacks: Sequence[Callback] = (),
        state: TrainState | None = None,
        nonfinite: NonfinitePolicy | None = None,
        request: StopRequest | None = None,
    ) -> None:
        self.model, self.optimizer, self.schedule, self.loader = model, optimizer, schedule, loader
        self.processes, self.steps, self.gradient_clip = processes, steps, gradient_clip
        self.state = state or TrainState()
        self.callbacks = [c for c in callbacks if processes.is_main or c.every_process]
        self._nonfinite, self._request = nonfinite or NonfinitePolicy(), request or StopRequest()
        self._wrapped: nn.Module = processes.wrap(model)
        self._batches: Iterator[RetroBatch] = iter(())
        #: Signal that asked to stop, agreed on by all processes; 0 = none.
        self.stop_signal = 0
        #: Whether no further step is to follow although there are more.
        self.ends_early = False
        #: Whether training ends at once, by KeyboardInterrupt: nothing may be waited for.
        self.interrupted = False
        #: Seconds that callbacks took after the steps of this session, outside training time, by their names.
        self.callback_seconds: defaultdict[str, float] = defaultdict(float)

    @property
    def is_last_step(self) -> bool:
        """Whether no further step follows in this session."""
        return self.state.step >= self.steps or self.stop_signal != 0 or self.ends_early

    def fit(self) -> TrainState:
        """Train; returns the state reached. `stop_signal` tells whether a signal ended it, possibly before a step.

        Raises TrainingDivergedError, before the optimizer moves, when loss or gradient are not finite and the policy is
        to stop, or its limit is reached.
        """
        if self.agree_to_stop():
            return self.state
        self.model.train()
        failed = True
        try:
            self._batches = iter(self.loader)
            for callback in self.callbacks:
                callback.on_start(self)
            while not self.is_last_step:
                record = self._step()
                if record is not None:
                    self._announce(record)
            failed = False
        except KeyboardInterrupt:
            self.interrupted = True
            raise
        finally:
            self._end(failed)
        return self.state

    def agree_to_stop(self) -> bool:
        """Whether a signal has come to any process, for use between steps; all processes must call it."""
        self.stop_signal = int(max(row[0] for row in self.processes.gather([float(self._request.signal_number)])))
        return self.stop_signal != 0

    def end_early(self) -> None:
        """Let the step that is being announced be the last one; to be called in all processes."""
        self.ends_early = True

    def go_back(self, state: TrainState) -> None:
        """Go on at `state`, after model, optimizer and callbacks were put back."""
        self.state = state
        self._close_batches()
        self.loader.seek(state.samples)
        self._batches = iter(self.loader)
        for callback in self.callbacks:
            callback.on_rollback(self)

    def announce_validation(self, record: ValidationRecord) -> None:
        """Tell all callbacks about a validation."""
        for callback in self.callbacks:
            callback.on_validation(self, record)

    def forward_backward(self, batch: RetroBatch, last: bool = True) -> Tensor:
        """Add the gradients of the summed loss of one micro-batch; returns that sum (nats), detached."""
        tensors = batch.to_torch(self.processes.device)
        with self.processes.accumulate(self._wrapped, last):
            with self.processes.autocast():
                output = self._wrapped(**tensors.model_inputs, reduction="sum")
            self.processes.accelerator.backward(output.loss)
        return output.loss.detach()

    def _step(self) -> StepRecord | None:
        """One step; None if the run went back to a checkpoint instead."""
        started = time.perf_counter()
        everyone = [_Share.of(row) for row in self.processes.gather(self._forward_backward_all())]
        shares: list[_Share] = self.processes.of_data(everyone)
        loss_sum, tokens = sum(share.loss_sum for share in shares), int(sum(share.tokens for share in shares))
        loss = loss_sum / max(tokens, 1)
        factor = self.processes.data_world / max(tokens, 1)  # gradients are averaged over the processes
        grad_norm = self.processes.scale_and_clip(self.model, factor, self.gradient_clip)
        self.stop_signal = int(max(share.signal for share in everyone))
        passed = dataclasses.replace(
            self.state,
            step=self.state.step + 1,
            samples=self.state.samples + self.loader.global_batch,
            sample_hash=join_hashes([split_hash(self.state.sample_hash), *(share.hash for share in shares)]),
        )
        learning_rate = self.schedule(self.state.step)
        taken = math.isfinite(loss) and math.isfinite(grad_norm)
        if taken:
            for callback in self.callbacks:
                callback.on_gradient(self, grad_norm)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.state = dataclasses.replace(passed, tokens=self.state.tokens + tokens)
        elif not self._nonfinite.handle(self, self._bad_step(loss, grad_norm, everyone, passed)):
            return None
        seconds = time.perf_counter() - started
        self.state = dataclasses.replace(self.state, elapsed_s=self.state.elapsed_s + seconds)
        return StepRecord(
            self.state,
            loss,
            loss_sum,
            tokens,
            learning_rate,
            grad_norm,
            seconds,
            data_seconds=max(share.data_seconds for share in everyone),
            clipped=self.gradient_clip is not None and grad_norm > self.gradient_clip,
            taken=taken,
            sequences=self.loader.global_batch,
        )

    def _forward_backward_all(self) -> list[float]:
        """Add the gradients of all micro-batches of a step; returns this process's _Share as numbers."""
        count = self.loader.micro_batches_per_step
        losses, scored, waited = [], 0, 0.0
        for i in range(count):
            asked = time.perf_counter()
            batch = next(self._batches)
            waited += time.perf_counter() - asked
            for callback in self.callbacks:
                callback.on_micro_batch(self, batch)
            scored += int(batch.loss_mask_BN.sum())
            losses.append(self.forward_backward(batch, last=i == count - 1))
        values = torch.stack(losses).tolist()  # the first wait for the device since the step began
        first_bad = next((i for i, value in enumerate(values) if not math.isfinite(value)), -1)
        own_hash = split_hash(self.loader.take_hash())
        return [sum(values), float(scored), float(self._request.signal_number), float(first_bad), waited, *own_hash]

    def _bad_step(self, loss: float, grad_norm: float, everyone: Sequence[_Share], passed: TrainState) -> BadStep:
        start, size = self.state.samples, self.loader.micro_batch
        part = self.loader.global_batch // self.processes.data_world
        losses = []
        for rank, share in enumerate(everyone):
            if share.first_bad >= 0:
                micro_batch = int(share.first_bad)
                first = start + rank // self.processes.tensor_world * part + micro_batch * size
                losses.append(BadLoss(rank, micro_batch, (first, first + size)))
        return BadStep(loss, grad_norm, (start, passed.samples), tuple(losses), passed)

    def _announce(self, record: StepRecord) -> None:
        for callback in self.callbacks:
            started = time.perf_counter()
            callback.on_step(self, record)
            self.callback_seconds[callback.name] += time.perf_counter() - started

    def _end(self, failed: bool) -> None:
        """Close everything, whatever one raises; if training `failed`, what it failed by is told and nothing else."""
        errors = []
        ends: list[Callable[[], None]] = [partial(callback.on_stop, self, failed) for callback in self.callbacks]
        for close in [self._close_batches, *ends]:
            try:
                close()
            except Exception as error:
                errors.append(error)
        if errors and not failed:
            raise errors[0]

    def _close_batches(self) -> None:
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()
