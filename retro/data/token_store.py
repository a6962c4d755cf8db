"""Tokens of documents, by memory map: artifact kind "tokens".

Per shard: `tokens-00000.bin` raw little-endian uint16 (vocabulary below 65,536) or uint32; `offsets-00000.npy` int64
[n + 1] relative to the shard; `keys-00000.npy` uint64 [n] document keys; `groups-00000.npy` uint64 [n] keys of the
documents' groups, 0 = none; `docs-00000.jsonl` {"id", "title", "source", "group"} and `lines-00000.npy` int64 [n], the
end of each of its lines. A document is [bos] text tokens [eos] and lies in one shard. Positions in the store count
through all shards. Documents lie in the order of the documents artifact; `order.npy` int64 [D] is the seeded shuffle in
which they are used: entry i is the number of the i-th document.

Nothing is read as a whole: a store of any size opens with a few pages of each of its files. Every file stays mapped, so
that a process's limit of maps (65,530 on Linux) bounds the number of shards to about ten thousand.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retro.artifacts.manifest import input_path, open_manifest
from retro.config.errors import ArtifactCorruptError
from retro.data.document_table import DocumentOffsets, DocumentRecords, GroupKeys
from retro.data.sharded_array import ShardedArray, allow_files, by_shard, load_array, open_sharded, read_bytes
from retro.data.tokenizer import read_tokenizer_config

TOKENS_KIND = "tokens"
ORDER_NAME = "order.npy"
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
# Entries that a check reads at once, and documents whose presence it notes at once.
_BLOCK, _FLAGS = 1 << 16, 64 << 20


class TokenStore:
    """Read-only view of a tokens artifact. Cheap to pickle: it travels as its path.

    num_tokens, num_documents; document_offsets int64 [D + 1] and document_keys uint64 [D], indexed like arrays
    (np.asarray(...) reads them whole); dtype of the stored tokens; vocab_size, bos_id, eos_id, pad_id;
    tokenizer_fingerprint; fingerprint; lossless: whether the tokenizer is (None: the artifact does not say).
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = open_manifest(self.folder, TOKENS_KIND)
        self.fingerprint = manifest.fingerprint
        self._shards = manifest.shards
        try:
            self.tokenizer_fingerprint = str(manifest.inputs["tokenizer"]["fingerprint"])
            self.dtype = DTYPES[manifest.stats["dtype"]]
            self.vocab_size = int(manifest.stats["vocab_size"])
            self.bos_id, self.eos_id = int(manifest.stats["bos_id"]), int(manifest.stats["eos_id"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactCorruptError(f"{self.folder}: the manifest lacks {error}; make the tokens again") from None
        allow_files(4 * len(self._shards))
        self._tokens = [self._map_tokens(shard["name"]) for shard in self._shards]
        self._starts = np.cumsum([0] + [len(tokens) for tokens in self._tokens])
        self._offsets = [
            self._map_offsets(shard, len(tokens)) for shard, tokens in zip(self._shards, self._tokens, strict=True)
        ]
        self.document_offsets = DocumentOffsets(self._offsets, self._starts)
        self.document_keys = open_sharded(self.folder, "keys", self._shards, np.uint64)
        self.num_tokens, self.num_documents = int(self._starts[-1]), len(self.document_keys)
        # Unknown for artifacts from before version 2 of the stage.
        self.lossless: bool | None = manifest.stats.get("lossless")
        self._views: dict[tuple[int, int], np.ndarray] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)

    @cached_property
    def pad_id(self) -> int:
        """What the tokenizer pads with. Raises ArtifactError where the tokenizer is not where it was."""
        folder = input_path(self.folder, open_manifest(self.folder, TOKENS_KIND), "tokenizer")
        return int(read_tokenizer_config(folder)["pad_id"])

    @cached_property
    def document_order(self) -> np.ndarray:
        """int64 [D], by memory map: the seeded shuffle of the documents. `verify` tells whether it is one."""
        return load_array(self.folder / ORDER_NAME, np.int64, (self.num_documents,), map_file=True)

    def document_record(self, document: int) -> dict[str, str]:
        """{"id", "title", "source", "group"} of a document. Raises IndexError for a number that there is not."""
        return self._records[document]

    @cached_property
    def _records(self) -> DocumentRecords:
        return DocumentRecords(self.folder, self._shards)

    def group_keys(self) -> GroupKeys:
        """uint64 [D]: key of every document's group (as `document_key`); equal keys = one group, in any store.

        A document without a group is a group of its own: its document key. Indexed like an array, by memory map;
        artifacts from before version 2 of the stage keep no keys of groups, those are computed (8 bytes per document).
        """
        return self._group_keys

    @cached_property
    def _group_keys(self) -> GroupKeys:
        parts = []
        for number, shard in enumerate(self._shards):
            name = f"groups-{shard['name']}.npy"
            if any(entry["name"] == name for entry in shard["files"]):
                parts.append(load_array(self.folder / name, np.uint64, (int(shard["rows"]),), map_file=True))
            else:
                parts.append(self._records.groups(number))
        return GroupKeys(ShardedArray(parts, np.uint64), self.document_keys)

    def verify(self) -> None:
        """Check what lies in the files, by blocks: offsets rise, every token is in the vocabulary, the order has every
        document once. Memory: a few MB and at most 64 Mi flags. Raises ArtifactCorruptError."""
        self.verify_offsets()
        for shard, tokens in zip(self._shards, self._tokens, strict=True):
            for first in range(0, len(tokens), _BLOCK):
                highest = int(tokens[first : first + _BLOCK].max())
                if highest >= self.vocab_size:
                    raise ArtifactCorruptError(
                        f"{self.folder}/tokens-{shard['name']}.bin: expected tokens below {self.vocab_size}, found "
                        f"{highest}; make the tokens again"
                    )
        order = self.document_order
        for low in range(0, self.num_documents, _FLAGS):
            seen = np.zeros(min(_FLAGS, self.num_documents - low), dtype=bool)
            for first in range(0, len(order), _BLOCK):
                block = order[first : first + _BLOCK]
                seen[block[(block >= low) & (block < low + len(seen))] - low] = True
            if not seen.all():  # as many entries as documents, so each is there once or one is not there
                raise self._no_order()

    def verify_offsets(self) -> None:
        """Check by blocks that the offsets of the documents rise. Raises ArtifactCorruptError."""
        for shard, offsets in zip(self._shards, self._offsets, strict=True):
            for first in range(0, len(offsets), _BLOCK):
                if bool((np.diff(offsets[first : first + _BLOCK + 1]) < 1).any()):
                    raise self._no_offsets(shard, offsets)

    def read_order(self, start: int, stop: int) -> np.ndarray:
        """int64: numbers of the documents in places start..stop-1 of the order of use. Raises ArtifactCorruptError."""
        documents = np.array(self.document_order[start:stop])
        if documents.size and not 0 <= int(documents.min()) <= int(documents.max()) < self.num_documents:
            raise self._no_order()
        return documents

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens of positions start..stop-1 (a copy, in the stored type). Raises IndexError outside the store."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens: expected a range within 0 to {self.num_tokens}, found {start} to {stop}")
        first, last = np.searchsorted(self._starts, [start, max(stop - 1, start)], side="right") - 1
        parts = [
            self._tokens[i][max(start - int(self._starts[i]), 0) : max(stop - int(self._starts[i]), 0)]
            for i in range(int(first), min(int(last) + 1, len(self._tokens)))
        ]
        return np.concatenate([np.zeros(0, self.dtype), *parts])

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Rows of `length` tokens from each of `starts`: int64 [n] -> [n, length] in the stored type.

        Positions beyond the end of the shard that holds the start are 0: no document goes on there, so a caller who
        cuts at the end of the document never sees them. Raises IndexError for a start outside the store.
        """
        starts = np.asarray(starts, dtype=np.int64)
        if len(starts) == 0:
            return np.zeros((0, length), self.dtype)
        if int(starts.min()) < 0 or int(starts.max()) >= self.num_tokens:
            raise IndexError(f"starts: expected 0 to {self.num_tokens - 1}, found {starts.min()} to {starts.max()}")
        if len(self._tokens) == 1:
            return self._gather_shard(0, starts, length)
        out = np.zeros((len(starts), length), self.dtype)
        for where, shard, local in by_shard(self._starts, starts):
            if isinstance(where, int):  # a slice: with few rows in each shard indexing operations do not pay
                run = self._tokens[shard][local : local + length]
                out[where, : len(run)] = run
            else:
                out[where] = self._gather_shard(shard, local, length)
        return out

    def _gather_shard(self, shard: int, starts: np.ndarray, length: int) -> np.ndarray:
        tokens = self._tokens[shard]
        last = len(tokens) - length
        if last >= 0 and int(starts.max()) <= last:
            # A view of all runs, of which one indexing operation gathers many.
            return np.asarray(self._windows(shard, length)[starts])
        out = np.zeros((len(starts), length), self.dtype)
        inside = starts <= last
        if inside.any():
            out[inside] = self._windows(shard, length)[starts[inside]]
        for row in np.flatnonzero(~inside):  # the last `length` - 1 positions of the shard: few
            tail = tokens[starts[row] : starts[row] + length]
            out[row, : len(tail)] = tail
        return out

    def _windows(self, shard: int, length: int) -> np.ndarray:
        key = (shard, length)
        if key not in self._views:
            self._views[key] = np.lib.stride_tricks.sliding_window_view(self._tokens[shard], length)
        return self._views[key]

    def _map_tokens(self, name: str) -> np.ndarray:
        path = self.folder / f"tokens-{name}.bin"
        data = read_bytes(path)
        if len(data) % self.dtype.itemsize:
            raise ArtifactCorruptError(
                f"{path}: {len(data)} bytes are no whole number of {self.dtype.name}; restore it"
            )
        return data.view(self.dtype)

    def _map_offsets(self, shard: dict[str, Any], tokens: int) -> np.ndarray:
        """Only the ends are looked at: `verify_offsets` reads the rest."""
        path = self.folder / f"offsets-{shard['name']}.npy"
        offsets = load_array(path, np.int64, (int(shard["rows"]) + 1,), map_file=True)
        if offsets[0] != 0 or offsets[-1] != tokens:
            raise self._no_offsets(shard, offsets)
        return offsets

    def _no_offsets(self, shard: dict[str, Any], offsets: np.ndarray) -> ArtifactCorruptError:
        return ArtifactCorruptError(
            f"{self.folder}/offsets-{shard['name']}.npy: expected rising offsets from 0 to the number of the shard's "
            f"tokens, found others (ends: {offsets[0]}, {offsets[-1]}); make the tokens again"
        )

    def _no_order(self) -> ArtifactCorruptError:
        return ArtifactCorruptError(f"{self.folder / ORDER_NAME}: expected every document once; make the tokens again")


def open_token_store(folder: str | Path) -> TokenStore:
    """The tokens of a finished artifact. Raises ArtifactError subclasses where the folder does not hold them."""
    return TokenStore(folder)
