"""A tensor-parallel parameter of a fused layer, as retro.train.checkpointing sees it: several ranges of rows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor


class RowPieces:
    """`tensor`, whose row i is row `order[i]` of the layer (`retro.nn.linear.Linear.row_order`), with the places that
    its rows have in the layer. Shares the tensor's memory.

    Adjacent rows of the layer that lie one below the other here are one piece, so a process has one per fused part at
    most, whatever FSDP cuts off.
    """

    def __init__(self, tensor: DTensor, order: Tensor) -> None:
        self.tensor = tensor
        self._local = tensor.to_local().detach()
        (held,) = tensor.__create_chunk_list__()
        begin, rest, rest_sizes = held.offsets[0], held.offsets[1:], held.sizes[1:]
        rows = order[begin : begin + held.sizes[0]]
        breaks = (rows.diff() != 1).nonzero().flatten() + 1
        #: Offset in the layer, first row here, size.
        self._pieces: list[tuple[torch.Size, int, torch.Size]] = []
        starts = [0, *breaks.tolist(), len(rows)]
        for start, end in pairwise(starts):
            if end > start:
                offset = torch.Size((int(rows[start]), *rest))
                self._pieces.append((offset, start, torch.Size((end - start, *rest_sizes))))

    @property
    def shape(self) -> torch.Size:
        """Of the whole layer's tensor."""
        return self.tensor.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def size(self) -> torch.Size:
        """As `shape`; the planners compare it with what is stored."""
        return self.tensor.shape

    def __create_write_items__(self, name: str, _: Any) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(name, offset),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(offset, size),
                    properties=TensorProperties.create_from_tensor(self._local),
                    size=self.shape,
                ),
            )
            for offset, _, size in self._pieces
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(offset, size) for offset, _, size in self._pieces]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        for offset, row, size in self._pieces:
            if offset == index.offset:
                return self._local[row : row + size[0]]
        raise ValueError(f"{index.fqn}: no piece at {index.offset} in this process")
