"""The bytes of a safetensors file, in the order in which the library itself lays tensors out, one tensor at a time.

So a set has one form as a single file, and the SHA-256 of that form names its content however it is cut into files.
`safetensors.torch.save_file` makes the same bytes, but keeps the interpreter's lock for the whole file and leaves the
checksum to a second pass over the disk, so training would stand still while a thread writes a checkpoint. Here the lock
is free while bytes are hashed and written.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retro.artifacts.fingerprint import sha256_file
from retro.model.tensor_files import TensorFiles
from retro.model.tensor_header import DTYPES

Kind = tuple[torch.dtype, tuple[int, ...]]
#: What the header of the set of a model says beside its tensors.
MODEL_METADATA = {"format": "pt"}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ORDER = {dtype: place for place, dtype in enumerate(DTYPES.values())}
_BLOCK = 8 << 20


def metadata_of(stem: str) -> dict[str, str] | None:
    """The metadata of the set `stem` as one file."""
    return MODEL_METADATA if stem == "model" else None


def iter_file(
    kinds: Mapping[str, Kind], read: Callable[[str], Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The bytes of the file with the tensors that `kinds` names, (dtype, shape) by name, in blocks.

    read: gives a tensor of that kind by its name; it is called once for each, in the order of the file.
    """
    # By descending alignment, so that every tensor begins at a multiple of its item size.
    order = sorted(kinds, key=lambda name: (-_ORDER[kinds[name][0]], name.encode()))
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        dtype, shape = kinds[name]
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        tensor = read(name)
        if (tensor.dtype, tuple(tensor.shape)) != kinds[name]:
            raise ValueError(f"{name}: expected {kinds[name]}, found {tensor.dtype}, {tuple(tensor.shape)}")
        content = _bytes_of(tensor)
        for start in range(0, len(content), _BLOCK):
            yield content[start : start + _BLOCK]


def write_file(
    path: Path,
    kinds: Mapping[str, Kind],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Write the new file `path` (see `iter_file`), flush it to the disk, and return the manifest's record of it,
    {"name", "bytes", "sha256"}.

    advance: called with the number of bytes of each block. Raises OSError.
    """
    digest, size = hashlib.sha256(), 0
    with open(path, "xb", buffering=0) as file:
        for block in iter_file(kinds, read, metadata):
            digest.update(block)
            _write_all(file, memoryview(block))
            size += len(block)
            advance(len(block))
        os.fsync(file.fileno())
    return {"name": path.name, "bytes": size, "sha256": digest.hexdigest()}


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """As `write_file`, of tensors (of any device) in memory. The record is of the bytes that were given to the system,
    not of what the disk made of them. Raises OSError, FileExistsError if `path` is there, and TypeError for a dtype
    without a name in the format."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise TypeError(f"{name}: tensors of {tensor.dtype} cannot be stored")
    kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    return write_file(path, kinds, tensors.__getitem__, metadata)


def _write_all(file: Any, block: memoryview) -> None:
    while block:
        block = block[file.write(block) :]


def content_sha256(files: TensorFiles) -> str:
    """SHA-256 of the set as one file: that of its file, or of the file that its pieces would make. Reads all of it."""
    if files.index is None:
        return sha256_file(files.files[0])
    digest = hashlib.sha256()
    for block in iter_file(kinds_of(files), files.read, metadata_of(files.stem)):
        digest.update(block)
    return digest.hexdigest()


def kinds_of(files: TensorFiles) -> dict[str, Kind]:
    """(dtype, shape) of every tensor of a set, by name."""
    return {name: (files.dtype(name), files.shape(name)) for name in files.names}


def _bytes_of(tensor: Tensor) -> memoryview:
    """Little endian; without a copy where the tensor lies contiguous in the memory of a little-endian machine."""
    if tensor.numel() == 0:
        return memoryview(b"")
    flat: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    if sys.byteorder == "big" and tensor.element_size() > 1:
        flat = flat.reshape(-1, tensor.element_size())[:, ::-1].copy().reshape(-1)
    return memoryview(flat)
