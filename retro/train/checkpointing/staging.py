"""What one process holds of a checkpoint's tensors: a copy that training does not change, or the tensors themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


@dataclass
class StagedTensor:
    """A tensor as torch.distributed.checkpoint's planners see it: the pieces that this process holds, by offset."""

    items: list[WriteItem]
    pieces: dict[torch.Size, Tensor] = field(default_factory=dict)

    def __create_write_items__(self, name: str, _: Any) -> list[WriteItem]:
        return self.items

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self.pieces[index.offset]

    def whole(self) -> Tensor:
        """The tensor, of which this process holds all in one piece."""
        (piece,) = self.pieces.values()
        return piece


class Staging:
    """Copies tensors into memory of the host.

    The buffers are kept from one checkpoint to the next: memory that is new costs more time than the copy. So a run
    with asynchronous checkpoints needs, from its first one on, once more the memory of this process's weights and
    optimizer state, and never more than that: a checkpoint is staged when the one before is written.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.Size], Tensor] = {}

    @torch.no_grad()
    def copy(self, entries: Mapping[str, Any]) -> dict[str, StagedTensor]:
        """A copy of the tensors (see retro.train.parallel.state), whole when this returns."""
        staged = view(entries)
        on_gpu = False
        for name, tensor in staged.items():
            for offset, piece in tensor.pieces.items():
                buffer = self._buffers.get((name, offset))
                if buffer is None or buffer.shape != piece.shape or buffer.dtype != piece.dtype:
                    buffer = torch.empty(piece.shape, dtype=piece.dtype, pin_memory=piece.is_cuda)
                    self._buffers[name, offset] = buffer
                on_gpu = on_gpu or piece.is_cuda
                buffer.copy_(piece, non_blocking=piece.is_cuda)
                tensor.pieces[offset] = buffer
        if on_gpu:
            torch.cuda.synchronize()
        return staged


@torch.no_grad()
def view(entries: Mapping[str, Any]) -> dict[str, StagedTensor]:
    """The tensors themselves, without a copy: for a checkpoint that is written before training goes on."""
    staged = {}
    for name, value in entries.items():
        items = _write_items(name, value)
        pieces = {}
        for item in items:
            assert item.index.offset is not None
            piece = value.__get_tensor_shard__(item.index) if _is_sharded(value) else value
            pieces[item.index.offset] = piece.detach()
        staged[name] = StagedTensor(items, pieces)
    return staged


def is_spread(entries: Mapping[str, Any]) -> bool:
    """Whether there are tensors that need not lie whole in each process; the same answer in all."""
    return any(_is_sharded(value) for value in entries.values())


def global_shape(name: str, value: Any) -> torch.Size:
    """The shape of the whole tensor of which `value` holds some or all."""
    if not _is_sharded(value) or isinstance(value, Tensor):
        return value.shape
    data = _write_items(name, value)[0].tensor_data
    assert data is not None
    return data.size


def _is_sharded(value: Any) -> bool:
    return hasattr(value, "__create_write_items__")


def _write_items(name: str, value: Any) -> list[WriteItem]:
    if _is_sharded(value):
        return list(value.__create_write_items__(name, value))
    start = torch.Size([0] * value.ndim)
    data = TensorWriteData(
        chunk=ChunkStorageMetadata(offsets=start, sizes=value.shape),
        properties=TensorProperties.create_from_tensor(value),
        size=value.shape,
    )
    return [WriteItem(index=MetadataIndex(name, start), type=WriteItemType.TENSOR, tensor_data=data)]
