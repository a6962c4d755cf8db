"""The stage build_index for vectors: from scratch, over a base that is extended, or over one with rows removed."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.base_artifact import check_same_rows, link_or_copy, sample_rows
from data_prep.embed import range_shards
from data_prep.index_quality import choose_settings, draw_sample, measure_recall
from data_prep.stage import Shard, ShardResult, Stage
from data_prep.train_index import TRAINED_FILE, TRAINED_KIND, vector_metric
from retro.artifacts.manifest import Manifest, input_path, open_manifest
from retro.config.errors import ArtifactMismatchError, ConfigError
from retro.config.prep_index import ENCODE_BLOCK, IndexConfig
from retro.config.sections import result_fields
from retro.retrieval.faiss_index import SearchSettings
from retro.retrieval.searcher import INDEX_KIND
from retro.retrieval.vector_searcher import FAISS_FILE, ROWS_FILE, open_parts
from retro.retrieval.vectors import EMBEDDINGS_KIND, VectorStore, open_vectors

# Encoded vectors of a shard, by list: what the merged file is made of, and a later index with rows added or removed.
ENTRY_PARTS = ("lists", "ids", "codes")


class VectorIndexStage(Stage):
    """Embeddings (+ trained index) -> index: exact (no file), or faiss in one or several parts.

    Inverted lists are filled by shards (`lists-`, `ids-`, `codes-<shard>.npy`) and merged into `index-<part>.faiss`,
    the file that one process would have made. Graphs and other indexes that grow point by point are filled by one
    process per part. The manifest has the parts {name, start, stop}, the search settings and recall@k.

    trained: of the same embeddings (None for exact); with a base, the base's. base: a finished index with the same
    options. Without `remove` it covers the first rows of `embeddings`; its files are hard-linked, and the rows after
    them become another part. With `remove` it covers the same rows before some became zero vectors: these leave every
    list; what is not lists is filled again from the embeddings.
    """

    name = "build_index"
    version = 2
    kind = INDEX_KIND

    def __init__(
        self,
        config: IndexConfig,
        embeddings: Path,
        trained: Path | None = None,
        base: Path | None = None,
        remove: bool = False,
    ) -> None:
        fields, inputs = result_fields(config), {EMBEDDINGS_KIND: Path(embeddings)}
        if trained is not None:
            inputs[TRAINED_KIND] = Path(trained)
        elif config.vectors.factory != "exact":
            raise ConfigError(f"factory {config.vectors.factory!r}: expected a trained index; run train_index first")
        if base is not None:
            inputs["base"] = Path(base)
            fields["base"] = "remove" if remove else "extend"
        super().__init__(fields, inputs)
        self._vectors, self._remove = config.vectors, remove
        if base is not None:
            self._check_base(Path(base))

    def _check_base(self, base: Path) -> None:
        manifest = open_manifest(base, INDEX_KIND)
        if manifest.config.get("vectors") != self.config["vectors"]:
            raise ArtifactMismatchError(
                f"{base}: expected a base index of vectors with {self.config['vectors']}, found "
                f"{manifest.config.get('vectors', manifest.config.get('kind'))}; a base must have the same options"
            )
        trained = manifest.inputs.get(TRAINED_KIND, {}).get("fingerprint")
        ours = self.inputs.get(TRAINED_KIND)
        if trained != (None if ours is None else open_manifest(ours, TRAINED_KIND).fingerprint):
            raise ArtifactMismatchError(f"{base}: expected a base with the same training, found that of {trained}")
        rows = open_manifest(self.inputs[EMBEDDINGS_KIND], EMBEDDINGS_KIND).rows
        if manifest.rows > rows or (self._remove and manifest.rows != rows):
            raise ArtifactMismatchError(
                f"{base}: expected an index of {'' if self._remove else 'at most '}{rows} vectors, found "
                f"{manifest.rows}; it is not the index of the database that was changed"
            )

    @cached_property
    def _factory(self) -> str:
        if TRAINED_KIND not in self.inputs:
            return self._vectors.factory
        return str(open_manifest(self.inputs[TRAINED_KIND], TRAINED_KIND).stats["factory"])

    @cached_property
    def _base(self) -> Manifest | None:
        return open_manifest(self.inputs["base"], INDEX_KIND) if "base" in self.inputs else None

    @cached_property
    def _store(self) -> VectorStore:
        return open_vectors(self.inputs[EMBEDDINGS_KIND])

    @cached_property
    def _by_lists(self) -> bool:
        """Whether shards encode (inverted lists), or parts are filled from the vectors."""
        from retro.retrieval.faiss_lists import has_plain_lists

        return has_plain_lists(self._trained())

    def _trained(self) -> Any:
        """The trained index, empty, to be filled."""
        from retro.retrieval.faiss_index import read_faiss

        folder = self.inputs[TRAINED_KIND]
        return read_faiss(folder / TRAINED_FILE.format(open_manifest(folder).shards[0]["name"]), into_memory=True)

    def plan(self) -> list[Shard]:
        """The shards of the base, then contiguous ranges of rows; one shard for exact search."""
        rows = open_manifest(self.inputs[EMBEDDINGS_KIND]).rows
        if self._factory == "exact":
            return [Shard("00000", {"start": 0, "stop": rows})]
        shards, start = [], 0
        if self._base is not None:
            for record in self._base.shards:
                stop = start + int(record["rows"])
                shards.append(Shard(record["name"], {"start": start, "stop": stop, "base": True}))
                start = stop
            if start == rows:
                return shards
        for shard in range_shards(rows - start, self._vectors.shard_vectors):
            spec = {"start": shard.spec["start"] + start, "stop": shard.spec["stop"] + start}
            shards.append(Shard(f"{len(shards):05d}", spec))
        return shards

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Encode the rows, or take those of the base over."""
        start, stop = shard.spec["start"], shard.spec["stop"]
        stats: dict[str, Any] = {}
        if self._factory != "exact":
            zero = self._zero_rows(start, stop)
            stats = {"zero_vectors": len(zero)}
            base = shard.spec.get("base", False)
            if base and not self._remove:
                self._check_rows(start, stop)
            if self._by_lists:
                if base:
                    self._take_over(shard.name, zero, out)
                else:
                    self._encode(shard, out)
            if not self._vectors.merge:
                self._write_own_part(shard, out)
        return ShardResult(stop - start, stats)

    def _encode(self, shard: Shard, out: Path) -> None:
        from retro.retrieval.faiss_lists import encode_rows

        entries = encode_rows(self._trained(), self._store, shard.spec["start"], shard.spec["stop"])
        for part, array in zip(ENTRY_PARTS, entries, strict=True):
            np.save(out / f"{part}-{shard.name}.npy", array)

    def _take_over(self, name: str, zero: np.ndarray, out: Path) -> None:
        """Entries of a shard of the base; without the rows that have become zero vectors since."""
        from retro.retrieval.faiss_lists import without_ids

        base = self.inputs["base"]
        if not self._remove:
            for part in ENTRY_PARTS:
                link_or_copy(base / f"{part}-{name}.npy", out / f"{part}-{name}.npy")
            return
        for part, array in zip(ENTRY_PARTS, without_ids(_entries(base, name), zero), strict=True):
            np.save(out / f"{part}-{name}.npy", array)

    def _write_own_part(self, shard: Shard, out: Path) -> None:
        if shard.spec.get("base") and not self._remove:
            _link_part(self.inputs["base"], shard.name, out)
            return
        self._write_part(out, out, [shard.name], shard.spec["start"], shard.spec["stop"])

    def _check_rows(self, start: int, stop: int) -> None:
        base = self.inputs["base"]
        assert self._base is not None
        before = open_vectors(input_path(base, self._base, EMBEDDINGS_KIND))
        check_same_rows(base, self.inputs[EMBEDDINGS_KIND], sample_rows(start, stop), before.gather, self._store.gather)

    def _zero_rows(self, start: int, stop: int) -> np.ndarray:
        return np.concatenate(
            [np.zeros(0, np.int64)]
            + [
                first + np.flatnonzero((block == 0).all(axis=1))
                for first, block in self._store.aligned_blocks(start, stop, ENCODE_BLOCK)
            ]
        )

    def _write_part(self, out: Path, folder: Path, names: list[str], start: int, stop: int) -> None:
        """One part: rows [start, stop), from the entries of the shards in `folder`, or filled by this process."""
        from retro.retrieval.faiss_index import write_faiss
        from retro.retrieval.faiss_lists import write_merged
        from retro.retrieval.faiss_training import fill_index

        path = out / FAISS_FILE.format(names[0])
        if self._by_lists:
            write_merged(self._trained(), [_entries(folder, name) for name in names], path)
            return
        index = self._trained()
        rows = fill_index(index, self._store, start, stop)
        write_faiss(index, path)
        np.save(out / ROWS_FILE.format(names[0]), rows)

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Merge, and measure what was written."""
        if self._factory == "exact":
            return {"factory": "exact", "recall": 1.0}
        ends = np.cumsum([record["rows"] for record in records]).tolist()
        ranges = [
            {"name": record["name"], "start": end - record["rows"], "stop": end}
            for record, end in zip(records, ends, strict=True)
        ]
        if self._vectors.merge:
            parts, place = self._merge(folder, out, ranges), out
        else:
            parts, place = ranges, folder
        reason = open_manifest(self.inputs[TRAINED_KIND]).stats["reason"]
        zero = sum(record["stats"]["zero_vectors"] for record in records)
        stats = {
            "factory": self._factory,
            "reason": reason,
            "vectors": ends[-1] - zero,
            "zero_vectors": zero,
            "parts": parts,
        }
        return {**stats, **self._measure(place, [part["name"] for part in parts])}

    def _merge(self, folder: Path, out: Path, ranges: list[dict[str, Any]]) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        if self._base is not None and not self._remove:
            for part in self._base.stats["parts"]:
                _link_part(self.inputs["base"], part["name"], out)
                parts.append(dict(part))
            ranges = ranges[len(self._base.shards) :]
        if ranges:
            start, stop = ranges[0]["start"], ranges[-1]["stop"]
            self._write_part(out, folder, [r["name"] for r in ranges], start, stop)
            parts.append({"name": ranges[0]["name"], "start": start, "stop": stop})
        return parts

    def _measure(self, place: Path, names: list[str]) -> dict[str, Any]:
        metric = vector_metric(self.inputs[EMBEDDINGS_KIND])
        settings = SearchSettings(self._vectors.probes, self._vectors.ef_search, self._vectors.k_factor)
        index = open_parts(place, names, self._store, metric, settings, self._factory)
        sample = draw_sample(self._store, metric, self._vectors)
        chosen = choose_settings(index, sample, self._vectors)
        return {
            "search": dataclasses.asdict(chosen),
            "recall": measure_recall(index, sample),
            "recall_at": sample.k,
            "recall_queries": len(sample.own),
        }

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """For people."""
        recall = "not measurable" if stats["recall"] is None else f"{stats['recall']:.3f}"
        if "search" not in stats:
            return f"{stats['factory']} over {rows:,} vectors, recall {recall}"
        settings = "".join(f", {name} {value}" for name, value in stats["search"].items() if value is not None)
        parts = f" in {len(stats['parts'])} parts" if len(stats["parts"]) > 1 else ""
        short = ""
        if stats["recall"] is not None and stats["recall"] < self._vectors.recall_target:
            short = f"; below recall_target {self._vectors.recall_target}: `retro prep tune-index` shows what it costs"
        return f"{stats['factory']} over {rows:,} vectors{parts}{settings}, recall@{stats['recall_at']} {recall}{short}"


def _entries(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lists, ids, codes = (
        np.load(folder / f"{part}-{name}.npy", mmap_mode="r", allow_pickle=False) for part in ENTRY_PARTS
    )
    return lists, ids, codes


def _link_part(base: Path, name: str, out: Path) -> None:
    for pattern in (FAISS_FILE, ROWS_FILE):
        source = base / pattern.format(name)
        if source.exists():
            link_or_copy(source, out / source.name)
