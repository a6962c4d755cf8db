"""A stored file beside the same file made again: integers and bytes must be equal, floats nearly so.

Why floats may differ at all: another processor, device, number of threads or version of a library adds in another
order. The tolerance is relative to the largest magnitude of the row (of the entry itself in arrays of one dimension):
an entry of a vector is a sum whose rounding errors are as large as its terms, not as the entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retro.data.sharded_array import read_array

_BLOCK_BYTES = 16 << 20

#: Relative tolerance by type of the numbers. float64: sums of a million terms keep nine digits. float32: the 24 bits of
#: a sum of some thousand terms, through the layers of an embedder, agree to four digits between processors. float16 is
#: a type of storage: a value that lies between two of its numbers is rounded to either (2^-10), after float32 work.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 2.0**-9}
#: Of whatever was computed in bfloat16, which has 8 bits: a few roundings (2^-8 each) of a row's largest entry.
BFLOAT16_TOLERANCE = 2.0**-5


@dataclass(frozen=True)
class Comparison:
    """equal: byte for byte, or in every number; within: equal, or floats that differ within the tolerance;
    found: one line about the difference, empty if equal."""

    equal: bool
    within: bool
    found: str = ""


def tolerance_of(dtype: np.dtype, bfloat16: bool = False) -> float:
    """Relative tolerance for numbers of this type, 0 = none. bfloat16: they were computed in it."""
    tolerance = TOLERANCE.get(dtype.name, 0.0)
    return max(tolerance, BFLOAT16_TOLERANCE) if tolerance and bfloat16 else tolerance


def compare_files(stored: Path, made: Path, bfloat16: bool = False) -> Comparison:
    """Compare by content: arrays (.npy) by number, in blocks, faiss indexes by part, all else by byte.

    Raises ArtifactCorruptError if one of two arrays is not readable.
    """
    offset, differing, longer = _different_bytes(stored, made)
    if not differing and not longer:
        return Comparison(True, True)
    if stored.suffix == ".npy":
        # Small files are read, not mapped: an array without entries cannot be mapped.
        arrays = [read_array(path, map_file=path.stat().st_size > _BLOCK_BYTES) for path in (stored, made)]
        return _compare_arrays(arrays[0], arrays[1], bfloat16)
    text = f"{differing:,} of {min(stored.stat().st_size, made.stat().st_size):,} bytes differ, from byte {offset:,} on"
    if longer:
        text += f"; {stored.stat().st_size:,} bytes stored, {made.stat().st_size:,} made again"
    if stored.suffix == ".faiss":
        from retro.retrieval.index_difference import describe_index_difference

        text += f"; {describe_index_difference(stored, made)}"
    return Comparison(False, False, text)


def _compare_arrays(stored: np.ndarray, made: np.ndarray, bfloat16: bool) -> Comparison:
    if stored.dtype != made.dtype or stored.shape != made.shape:
        found = f"{stored.dtype} {list(stored.shape)} stored, {made.dtype} {list(made.shape)} made again"
        return Comparison(False, False, found)
    tolerance = tolerance_of(stored.dtype, bfloat16)
    rows = len(stored) if stored.ndim else 1
    width = stored.size // rows if rows else 0
    stored, made = stored.reshape(rows, width), made.reshape(rows, width)
    block = max(1, _BLOCK_BYTES // max(1, stored.itemsize * width))
    entries = beyond = first = 0
    largest = 0.0
    for start in range(0, rows, block):
        a, b = np.asarray(stored[start : start + block]), np.asarray(made[start : start + block])
        unequal = _unequal(a, b)
        if not unequal.any():
            continue
        if not entries:
            first = start + int(np.flatnonzero(unequal.any(axis=1))[0])
        entries += int(unequal.sum())
        if tolerance:
            share = _relative_difference(a, b)
            share[~unequal] = 0.0
            largest = max(largest, float(share.max()))
            beyond += int((~(share <= tolerance)).sum())
        else:
            beyond += int(unequal.sum())
    if not entries:
        return Comparison(True, True)
    text = f"{entries:,} of {stored.size:,} entries differ, first in row {first:,}"
    if tolerance:
        text += f", by up to {largest:.2g} of the row's largest (tolerance {tolerance:.2g})"
        text += f", {beyond:,} beyond the tolerance" if beyond else ""
    return Comparison(False, beyond == 0, text)


def _unequal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """bool: entries that differ; NaN equals NaN."""
    if a.dtype.kind == "f":
        return ~((a == b) | (np.isnan(a) & np.isnan(b)))
    return np.asarray(a != b)


def _relative_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 [n, d] of a and b [n, d]: |a - b| by the largest finite magnitude of the row, or, with d = 1, of the two.

    Infinite where one side alone is infinite or not a number.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    scale = np.where(finite, np.maximum(np.abs(a), np.abs(b)), 0.0).max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        difference = np.where(finite, np.abs(a - b), np.inf)
    out: np.ndarray = np.divide(difference, scale, out=np.full(a.shape, np.inf), where=scale > 0)
    return out


def _different_bytes(one: Path, other: Path) -> tuple[int, int, bool]:
    """(offset of the first, number of) bytes that differ within the shorter length; whether the lengths differ."""
    first = count = place = 0
    with open(one, "rb") as a, open(other, "rb") as b:
        while True:
            left, right = a.read(_BLOCK_BYTES), b.read(_BLOCK_BYTES)
            size = min(len(left), len(right))
            if left[:size] != right[:size]:
                unequal = np.frombuffer(left, np.uint8, size) != np.frombuffer(right, np.uint8, size)
                if not count:
                    first = place + int(unequal.argmax())
                count += int(unequal.sum())
            place += size
            if len(left) != len(right):
                return (first if count else place), count, True
            if not left:
                return first, count, False
