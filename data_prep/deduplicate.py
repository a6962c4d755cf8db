"""Stage deduplicate: the documents without their duplicates, so that what is held out stays whole and unseen.

Three stages: sign_documents and find_duplicates decide, this one writes. Each of them works on shards in parallel, and
none holds more of the corpus than a shard and one bit per document.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.duplicate_pairs import DROPPED
from data_prep.find_duplicates import DROPPED_NAME, FindDuplicatesStage
from data_prep.runner import Executor, run_stage
from data_prep.sign_documents import SignDocumentsStage, deduplicate_settings, open_signed
from data_prep.signed_documents import SURVIVAL_ORDER, SignedDocuments, SignedShard, SignedWriter
from data_prep.stage import Shard, ShardResult, Stage
from retro.config.errors import ArtifactMismatchError
from retro.config.prep import DeduplicateConfig
from retro.data.document import DOCUMENTS_KIND, DocumentWriter, document_files, read_documents
from retro.data.npy_file import NpyReader
from retro.data.sharded_array import load_array

_COPIED_ROWS = 1 << 13
Build = Callable[[dict[str, Path]], Stage]


class DeduplicateStage(Stage):
    """Writes the documents that were not dropped, and a list of those that were.

    Kept is, of every set of duplicates, the first in the order of survival: documents of the base, then by split in
    SURVIVAL_ORDER, then by key (see `precedence`).

    Per shard (one per file of the documents): `documents-00000-*.jsonl.zst` (survivors, input order),
    `duplicates-00000.jsonl` ({"dropped", "kept", "kind": "exact" or "near", "similarity", "dropped_split",
    "kept_split"}, input order) and the files of data_prep/signed_documents.py for the survivors, to which documents can
    be added later.
    """

    name = "deduplicate"
    version = 2
    kind = DOCUMENTS_KIND

    def __init__(self, config: DeduplicateConfig, documents: Path, signatures: Path, duplicates: Path) -> None:
        """Folders of finished artifacts: the documents, their signatures, and what was decided of them."""
        self.deduplicate = config
        # Whoever adds documents to this artifact needs to know how they were signed.
        super().__init__(
            deduplicate_settings(config),
            {"documents": documents, "signatures": signatures, "duplicates": duplicates},
        )

    @cached_property
    def _signed(self) -> SignedDocuments:
        return open_signed(self.inputs["signatures"])

    @cached_property
    def _dropped(self) -> np.ndarray:
        path = self.inputs["duplicates"] / DROPPED_NAME
        return load_array(path, DROPPED, (len(NpyReader(path, DROPPED)),), map_file=True)

    def plan(self) -> list[Shard]:
        """One shard per file of documents. Raises ArtifactMismatchError if the signatures are of other documents."""
        files = document_files(self.inputs["documents"])
        if len(files) != len(self._signed.new):
            raise ArtifactMismatchError(
                f"{self.inputs['signatures']}: expected signatures of {len(files)} files of documents, found "
                f"{len(self._signed.new)}; it was made from other documents than {self.inputs['documents']}"
            )
        return [Shard(f"{i:05d}", {"file": path.name}) for i, path in enumerate(files)]

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Write the survivors of one file. Rows: survivors."""
        source = self._signed.new[int(shard.name)]
        first, last = np.searchsorted(self._dropped["number"], [source.first, source.first + source.rows])
        dropped = self._dropped[first:last]
        stays = np.ones(source.rows, dtype=bool)
        stays[dropped["number"].astype(np.int64) - source.first] = False
        stats = self._write_survivors(shard, source, stays, out)
        stats |= self._write_listing(dropped, out / f"duplicates-{shard.name}.jsonl")
        self._copy_signed(source, np.flatnonzero(stays), shard.name, out)
        return ShardResult(int(stays.sum()), stats)

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Sum up."""
        stats = [record["stats"] for record in records]
        splits: Counter[str] = Counter()
        pairs: Counter[str] = Counter()
        for entry in stats:
            splits.update(entry["splits"])
            pairs.update(entry["dropped_by_split"])
        return {
            "read": sum(entry["read"] for entry in stats),
            "documents": sum(record["rows"] for record in records),
            "text_bytes": sum(entry["text_bytes"] for entry in stats),
            "splits": dict(sorted(splits.items())),
            "dropped_exact": sum(entry["dropped_exact"] for entry in stats),
            "dropped_near": sum(entry["dropped_near"] for entry in stats),
            "dropped_by_split": dict(sorted(pairs.items())),
        }

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """One line for people."""
        return (
            f"{stats['documents']:,} documents kept of {stats['read']:,}; dropped {stats['dropped_exact']:,} exact and "
            f"{stats['dropped_near']:,} near duplicates"
        )

    def _write_survivors(self, shard: Shard, source: SignedShard, stays: np.ndarray, out: Path) -> dict[str, Any]:
        splits: Counter[str] = Counter()
        path = self.inputs["documents"] / shard.spec["file"]
        read = 0
        with DocumentWriter(out, shard.name) as writer:
            for document in read_documents(path):
                if read < len(stays) and stays[read]:
                    writer.write(document)
                    splits[document.split] += 1
                read += 1
        if read != source.rows:
            raise ArtifactMismatchError(
                f"{path}: expected {source.rows} documents as in {source.folder}, found {read}; "
                "make the signatures again"
            )
        return {"read": read, "text_bytes": writer.text_bytes, "splits": dict(sorted(splits.items()))}

    def _write_listing(self, dropped: np.ndarray, path: Path) -> dict[str, Any]:
        numbers, kept = dropped["number"].astype(np.int64), dropped["kept"].astype(np.int64)
        order = np.argsort(kept, kind="stable")
        kept_ids: list[str] = [""] * len(kept)
        for place, name in zip(order.tolist(), self._signed.ids(kept[order]), strict=True):
            kept_ids[place] = name
        splits = [[SURVIVAL_ORDER[i] for i in self._signed.splits.take(rows)] for rows in (numbers, kept)]
        kinds: Counter[str] = Counter()
        pairs: Counter[str] = Counter()
        with open(path, "w", encoding="utf-8", newline="\n") as listing:
            for i, name in enumerate(self._signed.ids(numbers)):
                kind = "near" if dropped["near"][i] else "exact"
                similarity = 1.0 - int(dropped["distance"][i]) / max(1, self._signed.permutations)
                entry = {
                    "dropped": name,
                    "kept": kept_ids[i],
                    "kind": kind,
                    "similarity": round(similarity, 6),
                    "dropped_split": splits[0][i],
                    "kept_split": splits[1][i],
                }
                listing.write(json.dumps(entry, ensure_ascii=False) + "\n")
                kinds[kind] += 1
                pairs[f"{splits[0][i]} because of {splits[1][i]}, {kind}"] += 1
        return {
            "dropped_exact": kinds["exact"],
            "dropped_near": kinds["near"],
            "dropped_by_split": dict(sorted(pairs.items())),
        }

    def _copy_signed(self, source: SignedShard, rows: np.ndarray, name: str, out: Path) -> None:
        """The files of signed_documents.py of `rows` int64 [n] of one shard."""
        signed = self._signed
        keys, splits, digests = (source.array(part) for part in ("keys", "splits", "digests"))
        with SignedWriter(out, name, signed.permutations) as writer:
            for start in range(0, len(rows), _COPIED_ROWS):
                part = rows[start : start + _COPIED_ROWS]
                signatures = signed.signatures.take(source.first + part) if signed.permutations else None
                ids = list(signed.ids(source.first + part))
                writer.append(ids, keys[part], splits[part], digests[part], signatures)


def deduplicate_steps(
    config: DeduplicateConfig, documents: str = "ingest", base: Path | None = None
) -> list[tuple[str, Build]]:
    """(step, build) of the three stages in order; the last one is `deduplicate`.

    `build` is called with the folders made so far, by step; `documents` is the step whose documents are read. base: a
    finished artifact of the stage deduplicate to which the documents are to be added. What duplicates one of its
    documents is dropped; an id that it has already is an ArtifactError.
    """
    return [
        ("sign_documents", lambda done: SignDocumentsStage(config, done[documents], base)),
        ("find_duplicates", lambda done: FindDuplicatesStage(config, done["sign_documents"])),
        (
            "deduplicate",
            lambda done: DeduplicateStage(config, done[documents], done["sign_documents"], done["find_duplicates"]),
        ),
    ]


def run_deduplicate(
    config: DeduplicateConfig,
    documents: Path,
    root: Path,
    base: Path | None = None,
    executor: Executor | None = None,
    progress: bool = True,
) -> Path:
    """Carry out the three stages below `root`; returns the folder of the documents that are left."""
    done = {"ingest": documents}
    for name, build in deduplicate_steps(config, base=base):
        done[name] = run_stage(build(done), root, executor, progress)
    return done["deduplicate"]
