"""Model FLOPs utilisation: the operations that the model asks for, per second, relative to the device's peak.

MFU = model FLOPs / (seconds * peak FLOP/s) (Chowdhery et al. 2022, appendix B). Model FLOPs are the matrix products of
the forward pass and twice as many of the backward pass (fewer where the backbone is frozen; retro/model/flops.py) for
the batches as they are: what is computed a second time to save memory does not count, and neither do missing neighbors
and padding, which the model leaves out. So GPT and RETRO have the same scale, and a RETRO does not look busier for
neighbors it lacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from retro.data.batch import RetroBatch
from retro.model.flops import Flops, batch_flops
from retro.model.retro import is_retrieval_parameter
from retro.train.callbacks.base import Callback
from retro.train.peak import Peak
from retro.train.state import StepRecord

if TYPE_CHECKING:
    from retro.config.model import ModelConfig
    from retro.train.trainer import Trainer


class Utilisation(Callback):
    """Counts the operations of this process' part of each step, for the callbacks after it: give it first.

    With several processes, and a device each, the figures are those of this one (the main one): operations per second
    and device.
    """

    name = "utilisation"

    def __init__(self, peak: Peak) -> None:
        self.peak = peak
        #: Operations of the last step, forward and backward.
        self.step_flops = 0
        self._counted = 0
        self._frozen = False

    def on_start(self, trainer: Trainer) -> None:
        """See what is trained."""
        backbone = [p for name, p in trainer.model.named_parameters() if not is_retrieval_parameter(name)]
        self._frozen = not any(parameter.requires_grad for parameter in backbone)

    def on_micro_batch(self, trainer: Trainer, batch: RetroBatch) -> None:
        """Add its operations."""
        flops = flops_of(trainer.model.config, batch)
        self._counted += flops.retrieval_training if self._frozen else flops.training

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """The step is complete."""
        self.step_flops, self._counted = self._counted, 0

    def on_rollback(self, trainer: Trainer) -> None:
        """The step that led to it is none."""
        self._counted = 0

    def share(self, flops: float, seconds: float) -> float:
        """MFU of so many operations in so many seconds; 1 = the peak."""
        return flops / max(seconds, 1e-9) / (self.peak.tflops * 1e12)


def flops_of(config: ModelConfig, batch: RetroBatch) -> Flops:
    """Operations of a batch."""
    rows, length = batch.tokens_BN.shape
    return batch_flops(
        config,
        rows,
        length,
        scored=int(batch.loss_mask_BN.sum()),
        neighbors_BLKR=_tensor(batch.neighbors_BLKR),
        neighbor_mask_BLKR=_tensor(batch.neighbor_mask_BLKR),
        document_starts_BN=_tensor(batch.document_starts_BN),
        chunk_ends_BL=_tensor(batch.chunk_ends_BL),
    )


def _tensor(array: np.ndarray | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(array)
