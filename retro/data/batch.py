"""One batch for the model, as numpy arrays and as tensors."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class RetroBatch:
    """B sequences of N tokens in L chunks, with K neighbors of R tokens per chunk (B N L M K R: docs/concepts.md).

    tokens_BN, targets_BN int32; loss_mask_BN bool: positions whose target is scored; neighbors_BLKR int32 and
    neighbor_mask_BLKR bool (True = real and useful), or both None without retrieval; chunk_ids_BL int64: query chunk
    of each place, -1 = padding; sample_ids_B int64: number of each sequence.
    """

    tokens_BN: np.ndarray
    targets_BN: np.ndarray
    loss_mask_BN: np.ndarray
    neighbors_BLKR: np.ndarray | None
    neighbor_mask_BLKR: np.ndarray | None
    chunk_ids_BL: np.ndarray
    sample_ids_B: np.ndarray

    def __len__(self) -> int:
        return len(self.sample_ids_B)

    def to_torch(self, device: torch.device | str = "cpu") -> TorchBatch:
        """The same as tensors on `device`: token ids int64, masks bool."""
        import torch

        def move(array: np.ndarray) -> torch.Tensor:
            # Moved in their narrow type and widened there: half the traffic to an accelerator.
            tensor = torch.from_numpy(np.ascontiguousarray(array)).to(device)
            return tensor if tensor.dtype == torch.bool else tensor.long()

        return TorchBatch(
            tokens_BN=move(self.tokens_BN),
            targets_BN=move(self.targets_BN),
            loss_mask_BN=move(self.loss_mask_BN),
            neighbors_BLKR=None if self.neighbors_BLKR is None else move(self.neighbors_BLKR),
            neighbor_mask_BLKR=None if self.neighbor_mask_BLKR is None else move(self.neighbor_mask_BLKR),
            chunk_ids_BL=move(self.chunk_ids_BL),
            sample_ids_B=move(self.sample_ids_B),
        )


@dataclasses.dataclass(frozen=True)
class TorchBatch:
    """RetroBatch as tensors: ids int64, masks bool."""

    tokens_BN: torch.Tensor
    targets_BN: torch.Tensor
    loss_mask_BN: torch.Tensor
    neighbors_BLKR: torch.Tensor | None
    neighbor_mask_BLKR: torch.Tensor | None
    chunk_ids_BL: torch.Tensor
    sample_ids_B: torch.Tensor

    def __len__(self) -> int:
        return len(self.sample_ids_B)
