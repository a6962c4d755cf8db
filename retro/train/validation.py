"""Loss and bits per byte on a fixed part of the validation split."""

from __future__ import annotations

import math

import numpy as np
import torch

from retro.model.retro import RetroModel
from retro.train.data import Sequences
from retro.train.distributed import Processes
from retro.train.state import TrainState, ValidationRecord


class Validation:
    """The first `sequences` sequences of a data set, shared out over the processes.

    byte_lengths int [V]: UTF-8 bytes of every token; batch: sequences per forward pass (memory and speed only).
    """

    def __init__(self, dataset: Sequences, byte_lengths: np.ndarray, *, sequences: int, batch: int) -> None:
        self.dataset, self.byte_lengths, self.batch = dataset, byte_lengths, batch
        self.sequences = min(sequences, len(dataset))

    @torch.no_grad()
    def run(self, model: RetroModel, processes: Processes, state: TrainState) -> ValidationRecord:
        """Evaluate `model` (as it is without the distributed wrapper, uncompiled); the same record in every process."""
        own = np.arange(processes.data_rank, self.sequences, processes.data_world)
        # Where layers are gathered, all processes make as many passes as the first one, whose share is the largest.
        largest = -(-self.sequences // processes.data_world) if processes.sharded else len(own)
        nats, tokens, text_bytes = 0.0, 0, 0
        training = model.training
        model.eval()
        with processes.evaluate(model) as forward:
            for start in range(0, largest, self.batch):
                ids = own[start : start + self.batch]
                batch = self.dataset.__getitems__(ids if len(ids) else np.arange(1))
                tensors = batch.to_torch(processes.device)
                with processes.autocast():
                    output = forward(**tensors.model_inputs, reduction="sum")
                if len(ids):
                    nats += float(output.loss)
                    tokens += int(batch.loss_mask_BN.sum())
                    text_bytes += int(self.byte_lengths[batch.targets_BN[batch.loss_mask_BN]].sum())
        model.train(training)
        rows = processes.of_data(processes.gather([nats, float(tokens), float(text_bytes)]))
        nats = sum(row[0] for row in rows)
        tokens, text_bytes = int(sum(row[1] for row in rows)), int(sum(row[2] for row in rows))
        return ValidationRecord(
            state=state,
            loss=nats / max(tokens, 1),
            bits_per_byte=nats / math.log(2) / max(text_bytes, 1),
            tokens=tokens,
            bytes=text_bytes,
        )
