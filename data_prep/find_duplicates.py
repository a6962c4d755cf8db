"""Stage find_duplicates: which documents are dropped as duplicates, and of which others."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.banding import choose_bands
from data_prep.duplicate_pairs import BUCKETED, DROPPED, PAIR, CandidatePairs, choose_dropped
from data_prep.external_sort import sort_runs
from data_prep.minhash import matches
from data_prep.sign_documents import EXACT, EXACT_NAME, band_file, deduplicate_settings, open_signed
from data_prep.signed_documents import SignedDocuments
from data_prep.stage import Shard, ShardResult, Stage
from retro.config.prep import DeduplicateConfig
from retro.data.npy_file import NpyReader, NpyWriter
from retro.data.sharded_array import load_array

DUPLICATES_KIND = "duplicates"
DROPPED_NAME = "dropped.npy"
# A band of more documents is several shards, by hash.
_SHARD_DOCUMENTS = 1 << 26
_BLOCK_ROWS = 1 << 17
_COMPARED = 1 << 12  # pairs of signatures in memory at once: 4 MiB at 128 values


class FindDuplicatesStage(Stage):
    """Decides which documents are dropped.

    Near: MinHash estimate of the Jaccard similarity of word shingles at or above the threshold, among the documents
    that share a bucket of the locality sensitive hashing (data_prep/banding.py; CandidatePairs for large buckets).
    Exact duplicates are gone already. The others are taken in the order of survival (`precedence`) and dropped if they
    resemble one that was kept before, so every dropped document has a kept one that it resembles, and the result
    depends neither on the order of the input nor on the number of workers. Documents of a base are never dropped.

    A shard is one band; its `pairs-00000.npy` are the pairs at or above the threshold (PAIR, sorted). At the end
    `dropped.npy` (DROPPED, by number). Memory: a few blocks; one bit per document while it is decided who is kept.
    """

    name = "find_duplicates"
    version = 1
    kind = DUPLICATES_KIND

    def __init__(self, config: DeduplicateConfig, signatures: Path) -> None:
        """`signatures`: folder of a finished signatures artifact, made with the same options."""
        self.deduplicate = config
        super().__init__(deduplicate_settings(config), {"signatures": signatures})

    @cached_property
    def _documents(self) -> SignedDocuments:
        return open_signed(self.inputs["signatures"])

    @cached_property
    def _exact(self) -> np.ndarray:
        return np.load(self.inputs["signatures"] / EXACT_NAME, mmap_mode="r", allow_pickle=False)

    def plan(self) -> list[Shard]:
        """One shard per band; several, if there are very many documents."""
        if not self.deduplicate.near:
            return []
        bands, _ = choose_bands(self.deduplicate.threshold, self.deduplicate.permutations)
        parts = max(1, -(-len(self._documents) // _SHARD_DOCUMENTS))
        specs = [{"band": band, "part": part, "of": parts} for band in range(bands) for part in range(parts)]
        return [Shard(f"{i:05d}", spec) for i, spec in enumerate(specs)]

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Compare the documents that share a bucket of one band. Rows: pairs found."""
        records = self._bucketed(shard.spec["band"], shard.spec["part"], shard.spec["of"])
        ordered = sort_runs(records, out / ".bucketed.npy", BUCKETED)
        pairs = CandidatePairs(NpyReader(ordered).blocks(_BLOCK_ROWS), self.deduplicate.bucket_candidates)
        compared = 0
        found_pairs = out / ".found.npy"
        with NpyWriter(found_pairs, PAIR) as writer:
            for earlier, later in pairs:
                new = later["number"] >= np.uint64(self._documents.base_documents)
                for found in self._resembling(earlier[new], later[new]):
                    writer.append(found)
                compared += int(new.sum())
        ordered.unlink()
        sort_runs([found_pairs], out / f"pairs-{shard.name}.npy", PAIR)  # an order that the size of blocks is not in
        found_pairs.unlink()
        count = pairs.count
        stats = {
            "compared": compared,
            "shared_buckets": count.shared,
            "larger_buckets": count.larger,
            "largest_bucket": count.largest,
        }
        return ShardResult(writer.rows, stats)

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Decide, and name for every dropped document one that is kept."""
        ordered = sort_runs((folder / f"pairs-{r['name']}.npy" for r in records), out / ".pairs.npy", PAIR)
        chosen, near = out / ".chosen.npy", out / ".near.npy"
        with NpyWriter(chosen, DROPPED) as writer:
            for dropped in choose_dropped(NpyReader(ordered).blocks(_BLOCK_ROWS), len(self._documents)):
                writer.append(dropped)
        ordered.unlink()
        sort_runs([chosen], near, DROPPED)
        chosen.unlink()
        exact = out / ".exact.npy"
        moved = self._write_exact(load_array(near, DROPPED, (writer.rows,), map_file=True), exact)
        total = len(NpyReader(sort_runs([near, exact], out / DROPPED_NAME, DROPPED)))
        near.unlink()
        exact.unlink()
        stats = [record["stats"] for record in records]
        return {
            "documents": len(self._documents),
            "base_documents": self._documents.base_documents,
            "dropped": total,
            "dropped_exact": total - writer.rows - moved,
            "dropped_near": writer.rows + moved,
            "compared": sum(entry["compared"] for entry in stats),
            "shared_buckets": sum(entry["shared_buckets"] for entry in stats),
            "larger_buckets": sum(entry["larger_buckets"] for entry in stats),
            "largest_bucket": max((entry["largest_bucket"] for entry in stats), default=0),
        }

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """One line for people."""
        line = f"{stats['dropped_exact']:,} exact and {stats['dropped_near']:,} near duplicates"
        if stats["larger_buckets"]:
            line += (
                f"; {stats['larger_buckets']:,} buckets of up to {stats['largest_bucket']:,} documents were compared "
                f"with their first {self.deduplicate.bucket_candidates} only (bucket_candidates)"
            )
        return line

    def _bucketed(self, band: int, part: int, of: int) -> Iterator[np.ndarray]:
        """BUCKETED records of the documents that can be near duplicates, in the order of their numbers."""
        bands, _ = choose_bands(self.deduplicate.threshold, self.deduplicate.permutations)
        for place, shard in enumerate(self._documents.shards):
            path = band_file(self.inputs["signatures"], self._documents.shards, place)
            hashes = np.array(load_array(path, np.uint64, (bands, shard.rows), map_file=True)[band])
            wanted = (hashes != 0) & (hashes % np.uint64(of) == np.uint64(part))
            first, last = np.searchsorted(self._exact["dropped"], [shard.first, shard.first + shard.rows])
            wanted[self._exact["dropped"][first:last].astype(np.int64) - shard.first] = False
            rows = np.flatnonzero(wanted)
            records = np.empty(len(rows), dtype=BUCKETED)
            records["hash"], records["precedence"] = hashes[rows], shard.precedence()[rows]
            records["number"] = shard.first + rows
            yield records

    def _resembling(self, earlier: np.ndarray, later: np.ndarray) -> Iterator[np.ndarray]:
        """PAIR records of those pairs whose signatures agree in enough values."""
        permutations = self.deduplicate.permutations
        signatures = self._documents.signatures
        for start in range(0, len(later), _COMPARED):
            one, two = earlier[start : start + _COMPARED], later[start : start + _COMPARED]
            equal = matches(
                signatures.take(one["number"].astype(np.int64)), signatures.take(two["number"].astype(np.int64))
            )
            near = equal / permutations >= self.deduplicate.threshold
            pairs = np.empty(int(near.sum()), dtype=PAIR)
            pairs["precedence"], pairs["number"] = two["precedence"][near], two["number"][near]
            pairs["other_precedence"], pairs["other"] = one["precedence"][near], one["number"][near]
            pairs["distance"] = permutations - equal[near]
            yield pairs

    def _write_exact(self, near: np.ndarray, path: Path) -> int:
        """Write the exact duplicates as DROPPED records; returns how many of them became near duplicates.

        A copy of a document that fell as a near duplicate of another is a near duplicate of that other itself.
        """
        moved = 0
        with NpyWriter(path, DROPPED) as writer:
            for block in NpyReader(self.inputs["signatures"] / EXACT_NAME, EXACT).blocks(_BLOCK_ROWS):
                records = np.zeros(len(block), dtype=DROPPED)
                records["number"], records["kept"] = block["dropped"], block["kept"]
                if len(near):
                    place = np.minimum(np.searchsorted(near["number"], block["kept"]), len(near) - 1)
                    fell = near["number"][place] == block["kept"]
                    for name in ("kept", "distance", "near"):
                        records[name][fell] = near[name][place[fell]]
                    moved += int(fell.sum())
                writer.append(records)
        return moved
