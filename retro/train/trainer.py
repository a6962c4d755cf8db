"""The training loop. Logs, validation and checkpoints are callbacks; no method's flag lives here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from retro.data.batch import RetroBatch
from retro.data.loader import TrainLoader
from retro.data.order import join_hashes, split_hash
from retro.model.retro import RetroModel
from retro.train.callbacks.base import Callback
from retro.train.distributed import Processes
from retro.train.signals import StopRequest, stop_on_signal
from retro.train.state import StepRecord, TrainingDivergedError, TrainState, ValidationRecord


class Trainer:
    """Takes optimizer steps until `steps` are made or a signal asks to stop.

    The loss of a step is the sum over the scored tokens of the global batch divided by their number, over all
    micro-batches and processes (not a mean of means): gradients of sums are accumulated, averaged over the processes,
    and scaled once.

    model: on the device, unwrapped; optimizer: over its parameters; schedule: learning rate of a 0-based step;
    loader: positioned at state.samples; gradient_clip: largest norm of the whole gradient, None = not clipped.
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
    ) -> None:
        self.model, self.optimizer, self.schedule, self.loader = model, optimizer, schedule, loader
        self.processes, self.steps, self.gradient_clip = processes, steps, gradient_clip
        self.state = state or TrainState()
        self.callbacks = [c for c in callbacks if processes.is_main or c.every_process]
        self._wrapped: nn.Module = processes.wrap(model)
        self._request = StopRequest()
        #: Signal that asked to stop, agreed on by all processes; 0 = none.
        self.stop_signal = 0

    @property
    def is_last_step(self) -> bool:
        """Whether no further step follows in this session."""
        return self.state.step >= self.steps or self.stop_signal != 0

    def fit(self) -> TrainState:
        """Train; returns the state reached. `stop_signal` tells whether a signal ended it.

        Raises TrainingDivergedError, before the optimizer moves, when loss or gradient are not finite.
        """
        self.model.train()
        failed = True
        batches = iter(self.loader)
        try:
            with stop_on_signal() as self._request:
                for callback in self.callbacks:
                    callback.on_start(self)
                while not self.is_last_step:
                    record = self._step(batches)
                    for callback in self.callbacks:
                        callback.on_step(self, record)
            failed = False
        finally:
            batches.close()  # type: ignore[attr-defined]
            for callback in self.callbacks:
                callback.on_stop(self, failed)
        return self.state

    def announce_validation(self, record: ValidationRecord) -> None:
        """Tell all callbacks about a validation."""
        for callback in self.callbacks:
            callback.on_validation(self, record)

    def forward_backward(self, batch: RetroBatch, last: bool = True) -> Tensor:
        """Add the gradients of the summed loss of one micro-batch; returns that sum (nats), detached."""
        tensors = batch.to_torch(self.processes.device)
        with self.processes.accumulate(self._wrapped, last):
            with self.processes.autocast():
                output = self._wrapped(
                    tensors.tokens_BN,
                    tensors.neighbors_BLKR,
                    tensors.neighbor_mask_BLKR,
                    targets_BN=tensors.targets_BN,
                    loss_mask_BN=tensors.loss_mask_BN,
                    document_starts_BN=tensors.document_starts_BN,
                    chunk_ends_BL=tensors.chunk_ends_BL,
                    reduction="sum",
                )
            self.processes.accelerator.backward(output.loss)
        return output.loss.detach()

    def _step(self, batches: Iterator[RetroBatch]) -> StepRecord:
        started = time.perf_counter()
        count = self.loader.micro_batches_per_step
        losses, scored = [], 0
        for i in range(count):
            batch = next(batches)
            for callback in self.callbacks:
                callback.on_micro_batch(self, batch)
            scored += int(batch.loss_mask_BN.sum())
            losses.append(self.forward_backward(batch, last=i == count - 1))
        own_loss = sum(loss.item() for loss in losses)
        own_hash = split_hash(self.loader.take_hash())
        everyone = self.processes.gather([own_loss, float(scored), float(self._request.signal_number), *own_hash])
        rows = self.processes.of_data(everyone)
        loss_sum, tokens = sum(row[0] for row in rows), int(sum(row[1] for row in rows))
        loss = loss_sum / max(tokens, 1)
        factor = self.processes.data_world / max(tokens, 1)  # gradients are averaged over the processes
        grad_norm = self.processes.scale_and_clip(self.model, factor, self.gradient_clip)
        self._check_finite(loss, grad_norm)
        learning_rate = self.schedule(self.state.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        self.state = TrainState(
            step=self.state.step + 1,
            samples=self.state.samples + self.loader.global_batch,
            tokens=self.state.tokens + tokens,
            elapsed_s=self.state.elapsed_s + seconds,
            sample_hash=join_hashes([split_hash(self.state.sample_hash), *(row[3:] for row in rows)]),
        )
        self.stop_signal = int(max(row[2] for row in everyone))
        return StepRecord(self.state, loss, loss_sum, tokens, learning_rate, grad_norm, seconds)

    def _check_finite(self, loss: float, grad_norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return
        raise TrainingDivergedError(
            f"step {self.state.step + 1}: loss {loss:.4g}, gradient norm {grad_norm:.4g}, expected finite numbers; "
            "this step was not taken and no checkpoint was written; lower learning_rate, lengthen warmup_steps or use "
            "precision=fp32, under another name="
        )
