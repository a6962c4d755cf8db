"""Tensor sets: named tensors in one safetensors file, or cut into pieces over several with an index.

A folder holds the set `stem` as `<stem>.safetensors`, or as `<stem>.index.json` and `<stem>-00000.safetensors`, ...
(docs/formats.md, "Tensor set"). Readers do not see which. Nothing is ever unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retro.config.errors import ArtifactCorruptError, ArtifactMissingError
from retro.model.tensor_header import StoredTensor, read_header, shown
from retro.model.tensor_index import Piece, TensorEntry, index_name, intersection, read_index
from retro.model.tensor_index import write_index as write_index

_NATIVE = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class TensorFiles:
    """The tensors of a set by name. Holds no file open and no tensor.

    folder, stem: where the set lies; index: the path of its index, None for one file; files: paths of the safetensors
    files, sorted. Made by `open_tensor_files`.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        index: Path | None,
        entries: Mapping[str, TensorEntry],
        stored: Mapping[str, Mapping[str, StoredTensor]],
    ) -> None:
        self.folder, self.stem, self.index = folder, stem, index
        self.files: tuple[Path, ...] = tuple(folder / name for name in sorted(stored))
        self._entries, self._stored = entries, stored

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, sorted."""
        return tuple(sorted(self._entries))

    @property
    def all_paths(self) -> tuple[Path, ...]:
        """The files and, if there is one, the index."""
        return self.files if self.index is None else (*self.files, self.index)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor. Raises KeyError for a name that the set has not."""
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """As stored."""
        return self._entries[name].dtype

    def num_bytes(self, name: str) -> int:
        """Of the whole tensor."""
        entry = self._entries[name]
        return math.prod(entry.shape) * entry.dtype.itemsize

    def pieces(self, name: str) -> tuple[Piece, ...]:
        """The blocks that the tensor is stored in; one for a set in one file."""
        return self._entries[name].pieces

    def read(self, name: str) -> Tensor:
        """The whole tensor, in the dtype it is stored in, on the CPU."""
        shape = self._entries[name].shape
        return self.read_slice(name, (0,) * len(shape), shape)

    def read_slice(self, name: str, offset: Sequence[int], shape: Sequence[int]) -> Tensor:
        """The block of `shape` from `offset` on; of the files only what it lies in is read.

        Raises ValueError for a block outside the tensor, and ArtifactCorruptError if a file has shrunk meanwhile.
        """
        entry = self._entries[name]
        start, size = tuple(map(int, offset)), tuple(map(int, shape))
        if not len(start) == len(size) == len(entry.shape) or any(
            a < 0 or n < 0 or a + n > limit for a, n, limit in zip(start, size, entry.shape, strict=True)
        ):
            raise ValueError(f"{name}: {list(size)} at {list(start)} lies outside the tensor of {list(entry.shape)}")
        if 0 in size:
            return torch.empty(size, dtype=entry.dtype)
        out = np.empty(size, _NATIVE[entry.dtype.itemsize])
        for piece in entry.pieces:
            shared = intersection(start, size, piece.offset, piece.shape)
            if shared is None:
                continue
            begin, extent = shared
            target: Any = tuple(slice(b - a, b - a + n) for a, b, n in zip(start, begin, extent, strict=True))
            source = [b - a for a, b in zip(piece.offset, begin, strict=True)]
            self._stored[piece.file][piece.key].copy_region(source, out[(*target, ...)])
        return torch.from_numpy(out).view(entry.dtype)


def open_tensor_files(folder: str | Path, stem: str) -> TensorFiles:
    """Open the set `stem` in `folder`: headers and index are read and checked against each other, no tensor is.

    Raises ArtifactMissingError (no such set), ArtifactCorruptError (a file missing, truncated, with other tensors than
    the index says, not covered exactly once, two forms beside each other) or ArtifactMismatchError (an index of a newer
    version); each one line.
    """
    folder = Path(folder)
    whole, index = folder / f"{stem}.safetensors", folder / index_name(stem)
    if whole.is_file() and index.exists():
        raise ArtifactCorruptError(
            f"{folder}: holds {whole.name} and {index.name}, and nothing says which counts; use another checkpoint"
        )
    if whole.is_file():
        header = read_header(whole)
        entries = {
            name: TensorEntry(t.dtype, t.shape, (Piece(whole.name, name, (0,) * len(t.shape), t.shape),))
            for name, t in header.items()
        }
        return TensorFiles(folder, stem, None, entries, {whole.name: header})
    if not index.is_file():
        what = "weights" if stem == "model" else "tensors"
        raise ArtifactMissingError(f"{whole}: {what} not found, and no {index.name} either; use another checkpoint")
    entries = read_index(folder, stem)
    names = sorted({piece.file for entry in entries.values() for piece in entry.pieces})
    for name in names:
        if not (folder / name).is_file():
            raise ArtifactCorruptError(
                f"{folder / name}: named in {index.name} but missing; restore it from a copy, or use another checkpoint"
            )
    stored = {name: read_header(folder / name) for name in names}
    _compare(index, entries, stored)
    return TensorFiles(folder, stem, index, entries, stored)


def _compare(index: Path, entries: Mapping[str, TensorEntry], stored: Mapping[str, Mapping[str, StoredTensor]]) -> None:
    """The pieces that the index names against those in the files."""
    left = {(file, key) for file, header in stored.items() for key in header}
    for name, entry in entries.items():
        for piece in entry.pieces:
            found = stored[piece.file].get(piece.key)
            where = f"{index.parent / piece.file}: {shown(piece.key)}"
            remedy = "restore the file from a copy, or use another checkpoint"
            if found is None:
                raise ArtifactCorruptError(f"{where}, a piece of {shown(name)}, is missing; {remedy}")
            if (found.dtype, found.shape) != (entry.dtype, piece.shape):
                raise ArtifactCorruptError(
                    f"{where}: expected {_kind(entry.dtype, piece.shape)} as {index.name} says, found "
                    f"{_kind(found.dtype, found.shape)}; {remedy}"
                )
            left.discard((piece.file, piece.key))
    if left:
        file, key = min(left)
        raise ArtifactCorruptError(
            f"{index.parent / file}: {shown(key)} is in no tensor of {index.name}; restore both from a copy, or use "
            "another checkpoint"
        )


def _kind(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {shown(list(shape))}"
