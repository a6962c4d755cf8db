"""What duplicates are told by, stored per document: key, split, digest, id and MinHash signature, in files per shard.

Both the stage that computes it and the finished documents artifact hold these files, so that documents can be added to
an artifact with nothing else at hand. Documents are told by number: the first artifact's documents, then the second's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from retro.artifacts.manifest import Manifest
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError
from retro.data.npy_file import NpyWriter
from retro.data.sharded_array import ShardedArray, load_array, read_bytes

# Who survives: held-out documents first, so that what resembles them leaves training and database (RETRO, section 2.1).
SURVIVAL_ORDER = ("test", "valid", "train", "database_only")
DIGEST = np.dtype([("high", "<u8"), ("low", "<u8")])
_PARTS: dict[str, Any] = {"keys": "<u8", "splits": "u1", "digests": DIGEST, "lines": "<i8"}


def precedence(keys: np.ndarray, splits: np.ndarray, new: bool) -> np.ndarray:
    """uint64 [n] by which documents survive, lowest first: those of a base, then by split, then by key.

    By key, which is a hash of the id: an order that no corpus can arrange, in which chains of resemblance are short.
    The lowest 3 bits of the key give way; documents that differ in nothing else follow each other by number.
    """
    upper = (np.uint64(4 if new else 0) | splits.astype(np.uint64)) << np.uint64(61)
    return upper | (keys.astype(np.uint64) >> np.uint64(3))


class SignatureFile:
    """Writes uint32 [n, p] as .npy by appending rows; the bytes are those of `numpy.save` of the whole."""

    def __init__(self, path: Path, permutations: int) -> None:
        self.rows, self._width = 0, permutations
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._header()

    def append(self, signatures: np.ndarray) -> None:
        """Append uint32 [n, p]."""
        if signatures.dtype != np.uint32 or signatures.shape[1:] != (self._width,):
            raise TypeError(f"expected uint32 [n, {self._width}], found {signatures.dtype} {signatures.shape}")
        self._file.write(np.ascontiguousarray(signatures, dtype="<u4").data)
        self.rows += len(signatures)

    def close(self) -> None:
        """Make the header right."""
        try:
            self._file.seek(0)
            self._header()
        finally:
            self._file.close()

    def _header(self) -> None:
        # numpy leaves room for the length to grow, so that the header has one size for any number of rows.
        header = {"descr": "<u4", "fortran_order": False, "shape": (self.rows, self._width)}
        np.lib.format.write_array_header_1_0(self._file, header)


class SignedWriter:
    """Writes the files of one shard. Use as a context manager; append rows of any number of documents at a time."""

    def __init__(self, out: Path, name: str, permutations: int) -> None:
        """permutations: 0 = without signatures."""
        self.count = 0
        self._arrays = {part: NpyWriter(out / f"{part}-{name}.npy", dtype) for part, dtype in _PARTS.items()}
        self._ids = open(out / f"ids-{name}.jsonl", "wb")  # noqa: SIM115 - closed on leaving
        self._signatures = SignatureFile(out / f"signatures-{name}.npy", permutations) if permutations else None
        self._end = 0

    def append(
        self, ids: list[str], keys: np.ndarray, splits: np.ndarray, digests: np.ndarray, signatures: np.ndarray | None
    ) -> None:
        """keys uint64 [n], splits uint8 [n] (place in SURVIVAL_ORDER), digests DIGEST [n], signatures uint32 [n, p]."""
        lines = [json.dumps(name, ensure_ascii=False).encode("utf-8") + b"\n" for name in ids]
        ends = self._end + np.cumsum(np.array([len(line) for line in lines], dtype=np.int64))
        self._ids.write(b"".join(lines))
        self._end = int(ends[-1]) if len(ends) else self._end
        for part, rows in (("keys", keys), ("splits", splits), ("digests", digests), ("lines", ends)):
            self._arrays[part].append(rows.astype(_PARTS[part], copy=False))
        if self._signatures is not None:
            assert signatures is not None
            self._signatures.append(signatures)
        self.count += len(ids)

    def __enter__(self) -> SignedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for array in self._arrays.values():
            array.__exit__()
        self._ids.close()
        if self._signatures is not None:
            self._signatures.close()


@dataclass(frozen=True)
class SignedShard:
    """One shard: its folder and name, the number of its first document, how many documents it has, and whether they are
    new or of the base."""

    folder: Path
    name: str
    first: int
    rows: int
    new: bool

    def array(self, part: str) -> np.ndarray:
        """keys, splits, digests or lines [rows], in memory: 8 or 16 bytes per document of the shard."""
        return load_array(self.folder / f"{part}-{self.name}.npy", _PARTS[part], (self.rows,))

    def precedence(self) -> np.ndarray:
        """uint64 [rows], see `precedence`."""
        return precedence(self.array("keys"), self.array("splits"), self.new)


def signed_shards(folder: Path, manifest: Manifest, first: int, new: bool) -> list[SignedShard]:
    """The shards of one artifact, its first document having the number `first`.

    Raises ArtifactMismatchError if it does not hold these files.
    """
    shards = []
    for entry in manifest.shards:
        names = {file["name"] for file in entry["files"]}
        missing = [part for part in _PARTS if f"{part}-{entry['name']}.npy" not in names]
        if missing:
            raise ArtifactMismatchError(
                f"{folder}: shard {entry['name']} has no {missing[0]}, so documents cannot be compared with its own; "
                "expected what this version of the stage deduplicate writes; make it again"
            )
        shards.append(SignedShard(folder, str(entry["name"]), first, int(entry["rows"]), new))
        first += shards[-1].rows
    return shards


class SignedDocuments:
    """The documents of one artifact, or of a base and of those to be added to it, by number."""

    def __init__(self, shards: list[SignedShard], permutations: int) -> None:
        """shards: by number, those of the base first. permutations: 0 = without signatures."""
        self.shards, self.permutations = shards, permutations
        end = shards[-1].first + shards[-1].rows if shards else 0
        self._first = np.array([shard.first for shard in shards] + [end], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def base_documents(self) -> int:
        """Number of documents of the base, which have the lowest numbers."""
        return sum(shard.rows for shard in self.shards if not shard.new)

    @property
    def new(self) -> list[SignedShard]:
        """The shards that are not of the base."""
        return [shard for shard in self.shards if shard.new]

    @cached_property
    def signatures(self) -> ShardedArray:
        """uint32 [documents, permutations], by memory map."""
        return ShardedArray([self._map(shard) for shard in self.shards], np.uint32)

    @cached_property
    def splits(self) -> ShardedArray:
        """uint8 [documents]: places in SURVIVAL_ORDER, by memory map."""
        paths = [(shard.folder / f"splits-{shard.name}.npy", shard.rows) for shard in self.shards]
        return ShardedArray([load_array(path, np.uint8, (rows,), map_file=True) for path, rows in paths], np.uint8)

    def ids(self, numbers: np.ndarray) -> Iterator[str]:
        """Ids of documents int64 [n], in their order; quick for numbers that ascend."""
        current, data, ends = -1, np.zeros(0, np.uint8), np.zeros(0, np.int64)
        for number, place in zip(numbers.tolist(), self._places(numbers), strict=True):
            shard = self.shards[place]
            if place != current:
                data = read_bytes(shard.folder / f"ids-{shard.name}.jsonl")
                lines = shard.folder / f"lines-{shard.name}.npy"
                current, ends = place, load_array(lines, np.int64, (shard.rows,), map_file=True)
            row = number - shard.first
            line = data[int(ends[row - 1]) if row else 0 : int(ends[row])].tobytes()
            try:
                found = json.loads(line)
            except ValueError:
                found = None
            if not isinstance(found, str):
                raise ArtifactCorruptError(
                    f"{shard.folder}/ids-{shard.name}.jsonl:{row + 1}: not an id; restore it or make it again"
                )
            yield found

    def _places(self, numbers: np.ndarray) -> list[int]:
        places: list[int] = (np.searchsorted(self._first, numbers, side="right") - 1).tolist()
        return places

    def _map(self, shard: SignedShard) -> np.ndarray:
        path = shard.folder / f"signatures-{shard.name}.npy"
        return load_array(path, np.uint32, (shard.rows, self.permutations), map_file=True)
