"""Tokens of documents, by memory map: artifact kind "tokens".

Per shard: `tokens-00000.bin` raw little-endian uint16 (vocabulary below 65,536) or uint32; `offsets-00000.npy` int64
[D + 1] relative to the shard; `keys-00000.npy` uint64 [D] document keys; `docs-00000.jsonl` {"id", "title", "source",
"group"}. A document is [bos] text tokens [eos] and lies in one shard. Positions in the store count through all shards.
Documents lie in the order of the documents artifact; `order.npy` int64 [D] is the seeded shuffle in which they are
used: entry i is the number of the i-th document.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retro.artifacts.manifest import input_path, open_manifest
from retro.config.errors import ArtifactCorruptError
from retro.data.document import document_key
from retro.data.sharded_array import load_array
from retro.data.tokenizer import read_tokenizer_config

TOKENS_KIND = "tokens"
ORDER_NAME = "order.npy"
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


class TokenStore:
    """Read-only view of a tokens artifact. Cheap to pickle: it travels as its path.

    num_tokens, num_documents; document_offsets int64 [D + 1]; document_keys uint64 [D]; document_order int64 [D];
    dtype of the stored tokens; vocab_size, bos_id, eos_id, pad_id; tokenizer_fingerprint; fingerprint.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = open_manifest(self.folder, TOKENS_KIND)
        self.fingerprint = manifest.fingerprint
        self._names = [str(shard["name"]) for shard in manifest.shards]
        try:
            self.tokenizer_fingerprint = str(manifest.inputs["tokenizer"]["fingerprint"])
            self.dtype = DTYPES[manifest.stats["dtype"]]
            self.vocab_size = int(manifest.stats["vocab_size"])
            self.bos_id, self.eos_id = int(manifest.stats["bos_id"]), int(manifest.stats["eos_id"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactCorruptError(f"{self.folder}: the manifest lacks {error}; make the tokens again") from None
        offsets, keys, sizes = [np.zeros(1, np.int64)], [], [0]
        self._tokens: list[np.ndarray] = []
        for shard in manifest.shards:
            path = self.folder / f"offsets-{shard['name']}.npy"
            own = load_array(path, np.int64, (int(shard["rows"]) + 1,))
            tokens = self._map_tokens(shard["name"])
            if own[0] != 0 or own[-1] != len(tokens) or bool((np.diff(own) < 1).any()):
                raise ArtifactCorruptError(
                    f"{path}: expected rising offsets from 0 to {len(tokens)}, found {own[0]} to {own[-1]}; "
                    "make the tokens again"
                )
            offsets.append(own[1:] + sum(sizes))
            sizes.append(len(tokens))
            keys.append(load_array(self.folder / f"keys-{shard['name']}.npy", np.uint64, (int(shard["rows"]),)))
            self._tokens.append(tokens)
        self.document_offsets = np.concatenate(offsets)
        self.document_keys = np.concatenate([np.zeros(0, np.uint64), *keys])
        self._starts = np.cumsum(sizes)
        self.num_tokens, self.num_documents = int(self._starts[-1]), len(self.document_keys)
        self._first_document = np.cumsum([0] + [int(shard["rows"]) for shard in manifest.shards])
        self._views: dict[tuple[int, int], np.ndarray] = {}
        self._lines: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)

    @cached_property
    def pad_id(self) -> int:
        """What the tokenizer pads with. Raises ArtifactError where the tokenizer is not where it was."""
        folder = input_path(self.folder, open_manifest(self.folder, TOKENS_KIND), "tokenizer")
        return int(read_tokenizer_config(folder)["pad_id"])

    @cached_property
    def document_order(self) -> np.ndarray:
        """int64 [D]: the seeded shuffle of the documents."""
        order = load_array(self.folder / ORDER_NAME, np.int64, (self.num_documents,))
        if not np.array_equal(np.sort(order), np.arange(self.num_documents)):
            raise ArtifactCorruptError(
                f"{self.folder / ORDER_NAME}: expected every document once; make the tokens again"
            )
        return order

    def document_record(self, document: int) -> dict[str, str]:
        """{"id", "title", "source", "group"} of a document. Raises IndexError for a number that there is not."""
        if not 0 <= document < self.num_documents:
            raise IndexError(f"document: expected 0 to {self.num_documents - 1}, found {document}")
        shard = int(np.searchsorted(self._first_document, document, side="right")) - 1
        data, ends = self._record_lines(shard)
        row = document - int(self._first_document[shard])
        line = data[int(ends[row - 1]) if row else 0 : int(ends[row])].tobytes()
        try:
            record: dict[str, str] = json.loads(line)
            _ = record["id"], record["title"], record["source"], record["group"]
        except (ValueError, KeyError, TypeError):
            path = self.folder / f"docs-{self._names[shard]}.jsonl"
            raise ArtifactCorruptError(f"{path}:{row + 1}: not a document record; make the tokens again") from None
        return record

    def group_keys(self) -> np.ndarray:
        """uint64 [D]: key of every document's group (as `document_key`); equal keys = one group, in any store.

        A document without a group is a group of its own: its document key.
        """
        groups = [self.document_record(document)["group"] for document in range(self.num_documents)]
        keys = {group: document_key(group) for group in set(groups) if group}
        own = zip(groups, self.document_keys.tolist(), strict=True)
        return np.array([keys.get(group, key) for group, key in own], dtype=np.uint64)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens of positions start..stop-1 (a copy, in the stored type). Raises IndexError outside the store."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens: expected a range within 0 to {self.num_tokens}, found {start} to {stop}")
        parts = [
            tokens[max(start - int(first), 0) : max(stop - int(first), 0)]
            for first, tokens in zip(self._starts, self._tokens, strict=False)
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
        # A slice per row: with many shards there are few rows in each, and indexing operations do not pay.
        out = np.zeros((len(starts), length), self.dtype)
        shards = np.searchsorted(self._starts, starts, side="right") - 1
        local = starts - self._starts[shards]
        for row, shard, start in zip(out, shards.tolist(), local.tolist(), strict=True):
            run = self._tokens[shard][start : start + length]
            row[: len(run)] = run
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
        size = _size(path)
        if size % self.dtype.itemsize:
            raise ArtifactCorruptError(f"{path}: {size} bytes are no whole number of {self.dtype.name}; restore it")
        if size == 0:  # nothing can be mapped
            return np.zeros(0, self.dtype)
        # Plain arrays: the subclass of memory maps costs more per operation than the operation.
        return np.asarray(np.memmap(path, dtype=self.dtype, mode="r"))

    def _record_lines(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """(bytes of the shard's records, end of each line); read when first asked for."""
        if shard not in self._lines:
            path = self.folder / f"docs-{self._names[shard]}.jsonl"
            data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r")) if _size(path) else np.zeros(0, np.uint8)
            ends = np.flatnonzero(data == ord("\n")) + 1
            expected = int(self._first_document[shard + 1] - self._first_document[shard])
            if len(ends) != expected:
                raise ArtifactCorruptError(f"{path}: expected {expected} lines, found {len(ends)}; restore it")
            self._lines[shard] = (data, ends)
        return self._lines[shard]


def open_token_store(folder: str | Path) -> TokenStore:
    """The tokens of a finished artifact. Raises ArtifactError subclasses where the folder does not hold them."""
    return TokenStore(folder)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        raise ArtifactCorruptError(f"{path}: missing; restore it or make the folder again") from None
