"""Stages that erase documents from documents and tokens. Others keep their numbers; unchanged shards are linked.

The configuration of a redacted artifact holds a hash of the places of what was removed, nothing of its content.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.base_artifact import link_or_copy
from data_prep.signed_documents import SignedWriter, signed_shards
from data_prep.stage import Shard, ShardResult, Stage
from data_prep.update.extend import DOCUMENT_PARTS
from data_prep.update.removal import Removal, removal_digest
from data_prep.update.taken_over import find_shard, take_over
from retro.artifacts.manifest import Manifest, input_path, open_manifest
from retro.data.document import DOCUMENTS_KIND, DocumentWriter, document_key, read_documents
from retro.data.npy_file import NpyReader, NpyWriter
from retro.data.sharded_array import load_array
from retro.data.token_store import DTYPES, ORDER_NAME, TOKENS_KIND
from retro.data.tokenizer import Tokenizer, open_tokenizer

_BLOCK = 1 << 20
_TOMBSTONE = {"id": "", "title": "", "source": "", "group": ""}


class RedactStage(Stage):
    """Input `redacted_from`: the artifact of the same kind. Shards keep their names.

    places: what is removed, by its place; it decides the result together with the inputs.
    """

    def __init__(self, folder: Path, inputs: dict[str, Path], places: list[np.ndarray]) -> None:
        config = {**open_manifest(folder, self.kind).config, "removed": removal_digest(*places)}
        super().__init__(config, {"redacted_from": folder, **inputs})

    @property
    def _folder(self) -> Path:
        return self.inputs["redacted_from"]

    @cached_property
    def _manifest(self) -> Manifest:
        return open_manifest(self._folder, self.kind)

    def plan(self) -> list[Shard]:
        """The same shards."""
        return [
            Shard(record["name"], {"input": "redacted_from", "shard": record["name"]})
            for record in self._manifest.shards
        ]

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """For people."""
        return f"{rows:,} rows" + (f", {stats['removed']:,} erased" if "removed" in stats else "")


class RedactDocumentsStage(RedactStage):
    """Documents without the removed ones; what later documents are compared with is left out with them."""

    name = "redact_documents"
    kind = DOCUMENTS_KIND

    def __init__(self, folder: Path, removal: Removal) -> None:
        self._rows = removal.documents
        none = np.zeros(0, np.int64)
        names = [record["name"] for record in open_manifest(folder, DOCUMENTS_KIND).shards]
        super().__init__(folder, {}, [self._rows.get(name, none) for name in names])

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Link the shard, or write it without some of its rows."""
        rows = self._rows.get(shard.name)
        if rows is None:
            taken = take_over(self._folder, shard, out, DOCUMENT_PARTS)
            return ShardResult(taken.rows, {k: v for k, v in taken.stats.items() if k in ("text_bytes", "splits")})
        record = find_shard(self._folder, shard.name)
        gone = set(rows.tolist())
        splits: Counter[str] = Counter()
        row = 0
        with DocumentWriter(out, shard.name) as writer:
            for entry in sorted(str(f["name"]) for f in record["files"] if str(f["name"]).startswith("documents-")):
                for document in read_documents(self._folder / entry):
                    if row not in gone:
                        writer.write(document)
                        splits[document.split] += 1
                    row += 1
        self._write_compared(shard.name, record, rows, out)
        return ShardResult(writer.count, {"text_bytes": writer.text_bytes, "splits": dict(sorted(splits.items()))})

    def _write_compared(self, name: str, record: dict[str, Any], rows: np.ndarray, out: Path) -> None:
        files = {str(f["name"]) for f in record["files"]}
        if f"ids-{name}.jsonl" not in files:
            if f"keys-{name}.npy" in files:
                keys = load_array(self._folder / f"keys-{name}.npy", np.uint64, (int(record["rows"]),))
                np.save(out / f"keys-{name}.npy", np.delete(keys, rows), allow_pickle=False)
            return
        source = next(s for s in signed_shards(self._folder, self._manifest, 0, new=True) if s.name == name)
        keys, splits, digests = (np.delete(source.array(part), rows) for part in ("keys", "splits", "digests"))
        signatures = None
        if f"signatures-{name}.npy" in files:
            signatures = np.delete(np.load(self._folder / f"signatures-{name}.npy", allow_pickle=False), rows, axis=0)
        with open(self._folder / f"ids-{name}.jsonl", encoding="utf-8") as lines:
            gone = set(rows.tolist())
            ids = [json.loads(line) for row, line in enumerate(lines) if row not in gone]
        with SignedWriter(out, name, 0 if signatures is None else signatures.shape[1]) as writer:
            writer.append(ids, keys, splits, digests, signatures)

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Sum up."""
        before = self._manifest.stats
        splits = Counter(before.get("splits", {}))
        text_bytes = int(before.get("text_bytes", 0))
        for old, new in zip(self._manifest.shards, records, strict=True):
            if new["name"] in self._rows:
                splits.subtract(old["stats"].get("splits", {}))
                splits.update(new["stats"]["splits"])
                text_bytes += new["stats"]["text_bytes"] - int(old["stats"].get("text_bytes", 0))
        documents = sum(int(record["rows"]) for record in records)
        return {
            "documents": documents,
            "text_bytes": text_bytes,
            "splits": {name: count for name, count in sorted(splits.items()) if count},
            "removed": int(before.get("removed", 0)) + self._manifest.rows - documents,
        }

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """For people."""
        return f"{rows:,} documents, {sum(map(len, self._rows.values())):,} removed"


class RedactTokensStage(RedactStage):
    """Tokens in which removed documents are padding, under a record without a name.

    They keep their numbers and their lengths. Their keys are made from their numbers, so that keys stay unique and
    tell nothing; group and place in the shuffle are 0 (the order of use stays).
    """

    name = "redact_tokens"
    kind = TOKENS_KIND

    def __init__(self, folder: Path, removal: Removal) -> None:
        self._numbers = removal.tokens[folder]
        tokenizer = input_path(folder, open_manifest(folder, TOKENS_KIND), "tokenizer")
        super().__init__(folder, {"tokenizer": tokenizer}, [self._numbers])

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return open_tokenizer(self.inputs["tokenizer"])

    @cached_property
    def _first(self) -> dict[str, int]:
        starts = np.cumsum([0] + [int(record["rows"]) for record in self._manifest.shards])
        return {record["name"]: int(start) for record, start in zip(self._manifest.shards, starts, strict=False)}

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Link the shard, or erase some of its documents."""
        record = find_shard(self._folder, shard.name)
        first, rows = self._first[shard.name], int(record["rows"])
        own = self._numbers[(self._numbers >= first) & (self._numbers < first + rows)] - first
        if not len(own):
            return take_over(self._folder, shard, out)
        for entry in record["files"]:
            name = str(entry["name"])
            part = name.split("-")[0]
            if part == "tokens":
                text_bytes = self._erase_tokens(name, shard.name, own, rows, out)
            elif part == "docs":
                self._erase_records(name, shard.name, set(own.tolist()), f"lines-{shard.name}.npy", out)
            elif part in ("keys", "groups", "ranks"):
                array = np.load(self._folder / name, allow_pickle=False)
                array[own] = tombstone_keys(own + first) if part == "keys" else 0
                np.save(out / name, array, allow_pickle=False)
            elif part != "lines":
                link_or_copy(self._folder / name, out / name)
        stats = {**record["stats"], "text_bytes": int(record["stats"].get("text_bytes", 0)) - text_bytes}
        return ShardResult(rows, stats)

    def _erase_tokens(self, name: str, shard: str, own: np.ndarray, rows: int, out: Path) -> int:
        """Write the tokens; returns the bytes of text that are gone."""
        shutil.copyfile(self._folder / name, out / name)
        offsets = load_array(self._folder / f"offsets-{shard}.npy", np.int64, (rows + 1,), map_file=True)
        lengths = self._tokenizer.token_byte_lengths()
        tokens = np.memmap(out / name, dtype=DTYPES[self._manifest.stats["dtype"]], mode="r+")
        gone = 0
        for row in own.tolist():
            span = slice(int(offsets[row]), int(offsets[row + 1]))
            gone += int(lengths[tokens[span]].sum())
            tokens[span] = self._tokenizer.pad_id
        tokens.flush()
        return gone

    def _erase_records(self, name: str, shard: str, own: set[int], lines: str, out: Path) -> None:
        ends: list[int] = []
        end = 0
        blank = json.dumps(_TOMBSTONE, separators=(",", ":")).encode() + b"\n"
        with open(self._folder / name, "rb") as source, open(out / name, "wb") as target:
            for row, line in enumerate(source):
                end += target.write(blank if row in own else line)
                ends.append(end)
        if (self._folder / lines).exists():
            np.save(out / lines, np.array(ends, dtype=np.int64), allow_pickle=False)

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """The same order, and the figures without what was erased."""
        with NpyWriter(out / ORDER_NAME, np.int64) as order:
            for block in NpyReader(self._folder / ORDER_NAME, np.int64).blocks(_BLOCK):
                order.append(block)
        before = self._manifest.stats
        old, new = (
            sum(int(record["stats"].get("text_bytes", 0)) for record in shards)
            for shards in (self._manifest.shards, records)
        )
        return {
            **before,
            "text_bytes": int(before.get("text_bytes", 0)) - (old - new),
            "removed": int(before.get("removed", 0)) + len(self._numbers),
        }


def tombstone_keys(numbers: np.ndarray) -> np.ndarray:
    """uint64: keys of removed documents of these numbers, which no document that is there has (but by collision)."""
    return np.array([document_key(f"\0removed\0{number}") for number in numbers.tolist()], dtype=np.uint64)
