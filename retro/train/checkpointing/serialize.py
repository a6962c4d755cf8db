"""safetensors files written in one pass: content, checksum, disk.

The bytes are those of `safetensors.torch.save_file` (its order of tensors, its header). That function keeps the
interpreter's lock for the whole file and makes the checksum a second pass over the disk, so training would stand still
while a thread writes a checkpoint; here the lock is free while bytes are hashed and written.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: Names of dtypes in the format, in the order in which it lays tensors out: the last ones first.
_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_ORDER = {dtype: place for place, dtype in enumerate(_DTYPES)}
_BLOCK = 8 << 20


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> dict:
    """Write `tensors` (of any device) to the new file `path` and flush it to the disk.

    Returns the manifest's record of it, {"name", "bytes", "sha256"}: of the bytes that were given to the system, not of
    what the disk made of them. Raises OSError, FileExistsError if `path` is there, and TypeError for a dtype without a
    name in the format.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name}: tensors of {tensor.dtype} cannot be stored")
    order = sorted(tensors, key=lambda name: (-_ORDER[tensors[name].dtype], name.encode()))
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "xb", buffering=0) as file:
        for piece in (len(text).to_bytes(8, "little"), text):
            digest.update(piece)
            _write_all(file, memoryview(piece))
        for name in order:
            content = _content(tensors[name])
            for start in range(0, len(content), _BLOCK):
                block = content[start : start + _BLOCK]
                digest.update(block)
                _write_all(file, block)
        os.fsync(file.fileno())
    return {"name": path.name, "bytes": 8 + len(text) + end, "sha256": digest.hexdigest()}


def _content(tensor: Tensor) -> memoryview:
    """The tensor's bytes, little endian, without a copy where it lies contiguous in this machine's memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    if sys.byteorder == "big" and tensor.element_size() > 1:
        flat = flat.reshape(-1, tensor.element_size())[:, ::-1].copy().reshape(-1)
    return flat.data


def _write_all(file: Any, block: memoryview) -> None:
    while block:
        block = block[file.write(block) :]
