"""One-dimensional .npy files in pieces: read by range and written by appending, without a memory map.

A map is right for random access. What is read once, from begin to end, is better read into memory that is given back:
mapped pages count as the process's own until the system takes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from retro.config.errors import ArtifactCorruptError

_FORMAT = np.lib.format


class NpyReader:
    """Rows of a one-dimensional .npy file by range. `len`: rows; dtype: of the file.

    Raises ArtifactCorruptError where the file is not one, has another type than `dtype` (None: any), or is cut off.
    Opens the file for every read, so that thousands of them can be at work at once.
    """

    def __init__(self, path: str | Path, dtype: Any = None) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                version = _FORMAT.read_magic(file)
                read = _FORMAT.read_array_header_1_0 if version == (1, 0) else _FORMAT.read_array_header_2_0
                shape, _, self.dtype = read(file)
                self._begin = file.tell()
                size = os.fstat(file.fileno()).st_size - self._begin
            if len(shape) != 1 or self.dtype.hasobject:
                raise ValueError(f"expected one dimension of numbers, found {self.dtype} {list(shape)}")
            if size != shape[0] * self.dtype.itemsize:
                raise ValueError(f"expected {shape[0] * self.dtype.itemsize} bytes of content, found {size}")
        except (OSError, ValueError, EOFError) as error:
            raise ArtifactCorruptError(
                f"{self.path}: not a readable array ({error}); restore it or make it again"
            ) from None
        if dtype is not None and self.dtype != np.dtype(dtype):
            raise ArtifactCorruptError(
                f"{self.path}: expected {np.dtype(dtype)}, found {self.dtype}; restore it or make it again"
            )
        self._rows = int(shape[0])

    def __len__(self) -> int:
        return self._rows

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1, as many of them as there are."""
        start, stop = max(0, min(start, self._rows)), max(0, min(stop, self._rows))
        count = max(0, stop - start)
        out = np.fromfile(self.path, self.dtype, count, offset=self._begin + start * self.dtype.itemsize)
        if len(out) != count:
            raise ArtifactCorruptError(f"{self.path}: expected {count} rows at {start}, found {len(out)}; restore it")
        return out

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """All rows, at most `rows` at a time."""
        for start in range(0, self._rows, rows):
            yield self.read(start, start + rows)


class NpyWriter:
    """Writes a one-dimensional .npy file by appending; the bytes are those of `numpy.save` of the whole.

    Use as a context manager: the header is made right on leaving. `rows`: written so far.
    """

    def __init__(self, path: str | Path, dtype: Any) -> None:
        self.path, self.dtype, self.rows = Path(path), np.dtype(dtype), 0
        self._file: BinaryIO = open(self.path, "wb")  # noqa: SIM115 - closed on leaving
        self._header()

    def append(self, rows: np.ndarray) -> None:
        """Append rows [n] of the file's type. Raises TypeError for another type: nothing is converted silently."""
        if rows.dtype != self.dtype or rows.ndim != 1:
            raise TypeError(f"{self.path}: expected {self.dtype} in one dimension, found {rows.dtype} {rows.shape}")
        self._file.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def __enter__(self) -> NpyWriter:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._file.seek(0)
            self._header()
        finally:
            self._file.close()

    def _header(self) -> None:
        # numpy leaves room for the length to grow, so that the header has one size for any number of rows.
        descr = _FORMAT.dtype_to_descr(self.dtype)
        _FORMAT.write_array_header_1_0(self._file, {"descr": descr, "fortran_order": False, "shape": (self.rows,)})
