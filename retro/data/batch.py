"""One batch for the model, as numpy arrays and as tensors."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class RetroBatch:
    """B sequences of N tokens in L chunks, with K neighbors of R tokens per chunk (B N L M K R: docs/concepts.md).

    tokens_BN, targets_BN int32; loss_mask_BN bool: positions whose target is scored; neighbors_BLKR int32 and
    neighbor_mask_BLKR bool (True = real and useful; fewer rows than L: the rest serve nothing), or both None without
    retrieval; chunk_ids_BL int64: query chunk of each place, -1 = none; sample_ids_B int64: number of each sequence.

    document_starts_BN int32: position (in the sequence) of the first token of each position's document, None = the
    documents of a sequence are not kept apart. chunk_ends_BL int64: position of the last token of each chunk of
    chunk_ids_BL, -1 = none; None = chunk l is the positions l M .. (l + 1) M - 1.
    """

    tokens_BN: np.ndarray
    targets_BN: np.ndarray
    loss_mask_BN: np.ndarray
    neighbors_BLKR: np.ndarray | None
    neighbor_mask_BLKR: np.ndarray | None
    chunk_ids_BL: np.ndarray
    sample_ids_B: np.ndarray
    document_starts_BN: np.ndarray | None = None
    chunk_ends_BL: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.sample_ids_B)

    def to_torch(self, device: torch.device | str = "cpu") -> TorchBatch:
        """The same as tensors on `device`: token ids int64, masks bool."""
        import torch

        on_gpu = torch.device(device).type == "cuda"

        def move(array: np.ndarray | None) -> Any:
            if array is None:
                return None
            tensor = torch.from_numpy(np.ascontiguousarray(array))
            if on_gpu:
                # From other memory the copy would wait until the GPU has done all that it was given before.
                tensor = tensor.pin_memory()
            # Moved in their narrow type and widened there: half the traffic to an accelerator.
            tensor = tensor.to(device, non_blocking=on_gpu)
            return tensor if tensor.dtype == torch.bool else tensor.long()

        return TorchBatch(**{field.name: move(getattr(self, field.name)) for field in dataclasses.fields(self)})


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
    document_starts_BN: torch.Tensor | None
    chunk_ends_BL: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.sample_ids_B)

    @property
    def model_inputs(self) -> dict[str, torch.Tensor | None]:
        """What RetroModel.forward takes of it, by the names there."""
        return {
            "tokens_BN": self.tokens_BN,
            "neighbors_BLKR": self.neighbors_BLKR,
            "neighbor_mask_BLKR": self.neighbor_mask_BLKR,
            "targets_BN": self.targets_BN,
            "loss_mask_BN": self.loss_mask_BN,
            "document_starts_BN": self.document_starts_BN,
            "chunk_ends_BL": self.chunk_ends_BL,
        }
