"""Stage deduplicate: drops exact and near duplicates so that what is held out stays whole and unseen."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.minhash import Signatures, normalise, similarities
from data_prep.stage import Shard, ShardResult, Stage
from retro.config.loader import to_dict
from retro.config.prep import DeduplicateConfig
from retro.data.document import (
    DOCUMENTS_KIND,
    DocumentWriter,
    document_files,
    read_documents,
)

# Who survives: held-out documents first, so that what resembles them leaves training and database (RETRO, section 2.1).
SURVIVAL_ORDER = ("test", "valid", "train", "database_only")
_EXACT, _NEAR = "exact", "near"
_HIGHEST_TABLE = 0.95


@dataclass(frozen=True)
class Duplicate:
    """A dropped document, the kept one that it duplicates, how ("exact" or "near"), and the estimated similarity."""

    dropped: int
    kept: int
    kind: str
    similarity: float


class DeduplicateStage(Stage):
    """Keeps, of every set of duplicates, the first by (split in SURVIVAL_ORDER, document id).

    Exact: equal text after `normalise`. Near: MinHash estimate of the Jaccard similarity of word shingles at or above
    the threshold, among the candidates of a locality sensitive hash table. Documents are taken in survival order and
    dropped if they resemble one that was kept before, so every dropped document has a kept one that it resembles, and
    the result depends neither on the order of the input nor on the number of workers.

    Per shard: `signatures-00000.npy` uint32 [documents, permutations] and `index-00000.jsonl`. At the end:
    `documents-00000-*.jsonl.zst` (survivors, input order) and `duplicates-00000.jsonl` ({"dropped", "kept", "kind",
    "similarity", "dropped_split", "kept_split"}).
    Memory of the closing step: one signature (4 bytes x permutations) and its table entries per document.
    """

    name = "deduplicate"
    version = 1
    kind = DOCUMENTS_KIND

    def __init__(self, config: DeduplicateConfig, documents: Path) -> None:
        """`documents`: folder of a finished documents artifact."""
        self.deduplicate = config
        settings = to_dict(config) if config.near else {"near": False}
        super().__init__(settings, {"documents": documents})

    @cached_property
    def _files(self) -> list[Path]:
        return document_files(self.inputs["documents"])

    @cached_property
    def _signatures(self) -> Signatures:
        return Signatures(self.deduplicate)

    def plan(self) -> list[Shard]:
        """One shard per file of documents."""
        return [Shard(f"{i:05d}", {"file": path.name}) for i, path in enumerate(self._files)]

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Hash and signature of every document."""
        rows: list[np.ndarray] = []
        permutations = self.deduplicate.permutations if self.deduplicate.near else 0
        blank = np.zeros(permutations, dtype=np.uint32)
        count = 0
        with open(out / f"index-{shard.name}.jsonl", "w", encoding="utf-8", newline="\n") as index:
            for document in read_documents(self.inputs["documents"] / shard.spec["file"]):
                digest = hashlib.sha256(normalise(document.text).encode("utf-8")).hexdigest()
                signature = self._signatures.signature(document.text) if self.deduplicate.near else None
                rows.append(blank if signature is None else signature)
                entry = [document.id, document.split, digest, signature is not None]
                index.write(json.dumps(entry, ensure_ascii=False) + "\n")
                count += 1
        table = np.stack(rows) if rows else np.zeros((0, permutations), dtype=np.uint32)
        np.save(out / f"signatures-{shard.name}.npy", table.astype("<u4"), allow_pickle=False)
        return ShardResult(count)

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Decide who survives, and write the survivors."""
        names = [record["name"] for record in records]
        ids: list[str] = []
        splits: list[str] = []
        digests: list[bytes] = []
        comparable: list[bool] = []
        for name in names:
            with open(folder / f"index-{name}.jsonl", encoding="utf-8") as index:
                for line in index:
                    document_id, split, digest, signed = json.loads(line)
                    ids.append(document_id)
                    splits.append(split)
                    digests.append(bytes.fromhex(digest))
                    comparable.append(signed)
        order = sorted(range(len(ids)), key=lambda i: (SURVIVAL_ORDER.index(splits[i]), ids[i]))
        duplicates = find_exact(order, digests)
        if self.deduplicate.near:
            gone = {duplicate.dropped for duplicate in duplicates}
            tables = [np.load(folder / f"signatures-{name}.npy", allow_pickle=False) for name in names]
            signatures = np.concatenate(tables) if tables else np.zeros((0, self.deduplicate.permutations), np.uint32)
            rest = [i for i in order if i not in gone and comparable[i]]
            near = find_near(rest, signatures, self._signatures, self.deduplicate.threshold)
            duplicates += near
        duplicates = follow_kept(duplicates)
        text_bytes = self._write_survivors(out, {duplicate.dropped for duplicate in duplicates})
        with open(out / "duplicates-00000.jsonl", "w", encoding="utf-8", newline="\n") as listing:
            for duplicate in sorted(duplicates, key=lambda duplicate: ids[duplicate.dropped]):
                entry = {
                    "dropped": ids[duplicate.dropped],
                    "kept": ids[duplicate.kept],
                    "kind": duplicate.kind,
                    "similarity": round(duplicate.similarity, 6),
                    "dropped_split": splits[duplicate.dropped],
                    "kept_split": splits[duplicate.kept],
                }
                listing.write(json.dumps(entry, ensure_ascii=False) + "\n")
        gone = {duplicate.dropped for duplicate in duplicates}
        kinds = Counter(duplicate.kind for duplicate in duplicates)
        pairs = Counter(f"{splits[d.dropped]} because of {splits[d.kept]}, {d.kind}" for d in duplicates)
        left = Counter(split for i, split in enumerate(splits) if i not in gone)
        return {
            "read": len(ids),
            "documents": len(ids) - len(gone),
            "text_bytes": text_bytes,
            "splits": {name: left[name] for name in sorted(left)},
            "dropped_exact": kinds[_EXACT],
            "dropped_near": kinds[_NEAR],
            "dropped_by_split": dict(sorted(pairs.items())),
        }

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """One line for people."""
        return (
            f"{stats['documents']:,} documents kept of {stats['read']:,}; dropped {stats['dropped_exact']:,} exact and "
            f"{stats['dropped_near']:,} near duplicates"
        )

    def _write_survivors(self, out: Path, gone: set[int]) -> int:
        """Write the survivors file by file; returns the bytes of their texts."""
        number = text_bytes = 0
        for i, path in enumerate(self._files):
            with DocumentWriter(out, f"{i:05d}") as writer:
                for document in read_documents(path):
                    if number not in gone:
                        writer.write(document)
                    number += 1
            text_bytes += writer.text_bytes
        return text_bytes


def find_exact(order: list[int], digests: list[bytes]) -> list[Duplicate]:
    """Documents whose digest one earlier in `order` has."""
    first: dict[bytes, int] = {}
    return [Duplicate(i, kept, _EXACT, 1.0) for i in order if (kept := first.setdefault(digests[i], i)) != i]


def find_near(order: list[int], signatures: np.ndarray, sketches: Signatures, threshold: float) -> list[Duplicate]:
    """Documents that resemble one kept earlier in `order`; signatures uint32 [documents, permutations]."""
    from datasketch import MinHashLSH

    # The table only proposes, every candidate is compared: it is tuned to miss few rather than to propose few. Its
    # bands cannot be laid out for a threshold near 1, where fewer bands would miss nothing that counts anyway.
    table = MinHashLSH(threshold=min(threshold, _HIGHEST_TABLE), num_perm=signatures.shape[1], weights=(0.1, 0.9))
    ranked = np.array(order, dtype=np.int64)
    found: list[Duplicate] = []
    for rank, i in enumerate(order):
        sketch = sketches.sketch(signatures[i])
        # Ranks, not row numbers: among equally similar documents the first in survival order is named.
        candidates = ranked[np.array(sorted(table.query(sketch)), dtype=np.int64)]
        if len(candidates):
            similarity = similarities(signatures[i], signatures[candidates])
            best = int(similarity.argmax())
            if similarity[best] >= threshold:
                found.append(Duplicate(i, int(candidates[best]), _NEAR, float(similarity[best])))
                continue
        table.insert(rank, sketch, check_duplication=False)
    return found


def follow_kept(duplicates: list[Duplicate]) -> list[Duplicate]:
    """Point every duplicate to a document that is kept.

    A copy of a document that fell as a near duplicate of another is a near duplicate of that other itself.
    """
    fallen = {duplicate.dropped: duplicate for duplicate in duplicates}
    out = []
    for duplicate in duplicates:
        last = duplicate
        while last.kept in fallen:
            last = fallen[last.kept]
        out.append(Duplicate(duplicate.dropped, last.kept, last.kind, last.similarity))
    return out
