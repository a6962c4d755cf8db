"""The header of a safetensors file, checked as content that anybody may have written, and its tensors, read in parts.

The format: 8 bytes of length, little endian; so many bytes of JSON, name -> {dtype, shape, data_offsets}; the bytes of
all tensors without a gap, little endian, row by row (https://github.com/huggingface/safetensors, README, "Format").
The library's own reader keeps every file open, which a set of a thousand files cannot afford.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retro.config.errors import ArtifactCorruptError

#: In the order in which the library lays tensors out, the last ones first.
DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
_LARGEST_HEADER = 100_000_000  # bytes; the library's own limit
_LARGEST = 2**63
_MOST_DIMENSIONS = 64


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file: its bytes begin at `begin`, counted from the start of the file."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    def copy_region(self, start: Sequence[int], out: np.ndarray[Any, Any]) -> None:
        """Fill `out`, an array of unsigned integers of the dtype's size, with the region of its shape from `start` on.

        Only the pages that the region lies in are read. Raises ArtifactCorruptError if the file has shrunk since its
        header was read.
        """
        if out.size == 0:
            return
        try:
            stored = np.memmap(self.path, f"<u{self.dtype.itemsize}", "r", self.begin, (math.prod(self.shape),))
        except (OSError, ValueError) as error:
            raise _corrupt(self.path, str(error)) from None
        region = tuple(slice(a, a + n) for a, n in zip(start, out.shape, strict=True))
        out[...] = stored.reshape(self.shape)[region]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name; no tensor is read.

    Raises ArtifactCorruptError: not such a file, truncated, with bytes that are no tensor's, or with a dtype that is
    not known.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or not 2 <= length <= min(size - 8, _LARGEST_HEADER):
                raise _corrupt(path, "it is no safetensors file, or truncated in its header")
            text = file.read(length)
    except OSError as error:
        raise _corrupt(path, error.strerror or str(error)) from None
    content = parse_object(text, lambda problem: _corrupt(path, f"header: {problem}"))
    content.pop("__metadata__", None)
    found = {name: _entry(path, name, entry, 8 + length) for name, entry in content.items()}
    end = 8 + length
    for name, tensor in sorted(found.items(), key=lambda item: (item[1].begin, _bytes(item[1]))):
        if tensor.begin != end:
            raise _corrupt(path, f"{shown(name)} begins at byte {tensor.begin}, expected {end}")
        end += _bytes(tensor)
    if end != size:
        raise _corrupt(path, f"expected {end} bytes, found {size}")
    return found


def parse_object(text: bytes, error: Callable[[str], Exception]) -> dict[str, Any]:
    """A JSON object of somebody else's file. Raises error(problem): not JSON, nested too deep, a name given twice, a
    number that is not finite, or no object."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{shown(next(n for n in names if names.count(n) > 1))} is given twice")
        return out

    def finite(name: str) -> None:
        raise ValueError(f"found {name}, which is not JSON")

    try:
        value = json.loads(text, object_pairs_hook=once, parse_constant=finite)
    except RecursionError:
        raise error("nested too deep") from None
    except ValueError as problem:
        raise error(f"not readable as JSON: {str(problem).splitlines()[0]}") from None
    if not isinstance(value, dict):
        raise error(f"expected an object, found {type(value).__name__}")
    return value


def parse_sizes(value: Any, what: str, error: Callable[[str], Exception]) -> tuple[int, ...]:
    """A list of whole numbers that can be a tensor's shape, or an offset in it."""
    whole = isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
    if not whole or len(value) > _MOST_DIMENSIONS:
        raise error(f"{what}: expected a list of at most {_MOST_DIMENSIONS} whole numbers, found {shown(value)}")
    if math.prod(n for n in value if n) >= _LARGEST:
        raise error(f"{what}: no tensor can be as large as {shown(value)}")
    return tuple(value)


def shown(value: Any) -> str:
    """A value of somebody else's file for an error message: one short line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _entry(path: Path, name: str, entry: Any, data: int) -> StoredTensor:
    def error(problem: str) -> ArtifactCorruptError:
        return _corrupt(path, f"{shown(name)}: {problem}")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise error(f"expected dtype, shape and data_offsets, found {shown(entry)}")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise error(f"dtype: expected one of {', '.join(DTYPES)}, found {shown(entry['dtype'])}")
    shape = parse_sizes(entry["shape"], "shape", error)
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        raise error(f"data_offsets: expected two whole numbers, found {shown(offsets)}")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise error(f"shape {shown(list(shape))} of {entry['dtype']} does not fit into bytes {shown(offsets)}")
    return StoredTensor(path, dtype, shape, data + offsets[0])


def _bytes(tensor: StoredTensor) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def _corrupt(path: Path, problem: str) -> ArtifactCorruptError:
    return ArtifactCorruptError(
        f"{path}: not a whole safetensors file: {problem}; restore it from a copy, or use another"
    )
