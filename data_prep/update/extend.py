"""Stages that put two artifacts of one kind one after the other: the base's rows keep their numbers.

The base's shards are hard-linked, so that nothing of it is computed or stored again.
"""

from __future__ import annotations

import itertools
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.chunk_lookup import write_lookup
from data_prep.external_sort import find_repeats, sort_runs
from data_prep.stage import Shard, ShardResult, Stage
from data_prep.update.taken_over import find_shard, shards_of, take_over
from retro.artifacts.manifest import Manifest, input_path, open_manifest
from retro.config.errors import ArtifactError, ArtifactMismatchError, ConfigError
from retro.data.chunk_store import CHUNKS_KIND
from retro.data.document import DOCUMENTS_KIND, document_key, iter_documents
from retro.data.npy_file import NpyReader, NpyWriter
from retro.data.release_match import check_same_tokenizer
from retro.data.sharded_array import open_sharded
from retro.data.token_store import ORDER_NAME, TOKENS_KIND, open_token_store
from retro.retrieval.embedder import check_recipe
from retro.retrieval.vectors import EMBEDDINGS_KIND

_BLOCK = 1 << 20
_SHOWN = 5
# Of documents: the texts, and what later documents are compared with (not the lists of those that were left out).
DOCUMENT_PARTS = ("documents", "keys", "splits", "digests", "lines", "ids", "signatures")


class ExtendStage(Stage):
    """Inputs `base` and `added`: the shards of the one, then those of the other. The configuration is the base's."""

    def __init__(self, base: Path, added: Path, inputs: dict[str, Path]) -> None:
        config = open_manifest(base, self.kind).config
        super().__init__(config, {"base": base, "added": added, **inputs})
        open_manifest(added, self.kind)

    @cached_property
    def _base(self) -> Manifest:
        return open_manifest(self.inputs["base"], self.kind)

    @cached_property
    def _added(self) -> Manifest:
        return open_manifest(self.inputs["added"], self.kind)

    def plan(self) -> list[Shard]:
        """The shards of both."""
        return shards_of((name, self.inputs[name]) for name in ("base", "added"))

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Link the files."""
        return take_over(self.inputs[shard.spec["input"]], shard, out)

    def _sum(self, name: str) -> int:
        return int(self._base.stats.get(name, 0)) + int(self._added.stats.get(name, 0))

    def _check_input(self, of: str, name: str, expected: str) -> None:
        """Raise ArtifactMismatchError unless the input `of` was made from the artifact `expected`."""
        found = open_manifest(self.inputs[of]).inputs.get(name, {}).get("fingerprint")
        if found != expected:
            raise ArtifactMismatchError(
                f"{self.inputs[of]}: expected {self.kind} made from the {name} {expected}, found {found}; extend what "
                "belongs together"
            )

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """For people."""
        return f"{rows:,} rows, {self._added.rows:,} of them added"


class ExtendDocumentsStage(ExtendStage):
    """Documents of the base, then the added ones, with what later documents are compared with, where both have it.

    Raises ConfigError if there is nothing to add, and ArtifactError for an id that the base has already.
    """

    name = "extend_documents"
    kind = DOCUMENTS_KIND

    def __init__(self, base: Path, added: Path) -> None:
        super().__init__(base, added, {})

    def plan(self) -> list[Shard]:
        """The shards of both."""
        if self._added.stats["documents"] == 0:
            raise ConfigError(
                "nothing to add: every new document duplicates one of the base; they are listed in duplicates-*.jsonl "
                f"of {self.inputs['added']}"
            )
        return super().plan()

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Link the texts and the signatures."""
        taken = take_over(self.inputs[shard.spec["input"]], shard, out, DOCUMENT_PARTS)
        return ShardResult(taken.rows, {k: v for k, v in taken.stats.items() if k in ("text_bytes", "splits")})

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Compare the ids (sorted on disk, by their keys), and sum up."""
        keys = [folder / f"keys-{record['name']}.npy" for record in records]
        ordered = sort_runs(keys, out / ".keys.npy", np.uint64)
        repeated = list(itertools.islice(find_repeats(ordered), _SHOWN))
        ordered.unlink()
        if repeated:
            wanted = set(repeated)
            names = sorted({d.id for d in iter_documents(self.inputs["added"]) if document_key(d.id) in wanted})
            raise ArtifactError(
                f"{self.inputs['base']}: has documents of the same ids as new ones: {', '.join(map(repr, names))}; "
                "give the new ones other ids, or remove the old ones first with `retro prep remove`"
            )
        splits = Counter(self._base.stats.get("splits", {})) + Counter(self._added.stats.get("splits", {}))
        return {
            "documents": sum(int(record["rows"]) for record in records),
            "text_bytes": self._sum("text_bytes"),
            "splits": dict(sorted(splits.items())),
        }


class ExtendTokensStage(ExtendStage):
    """Tokens of the base, then the added ones; the base's documents are used first, in their order.

    Raises ArtifactMismatchError for another tokenizer.
    """

    name = "extend_tokens"
    kind = TOKENS_KIND

    def __init__(self, base: Path, added: Path) -> None:
        manifest = open_manifest(base, TOKENS_KIND)
        tokenizer = input_path(base, manifest, "tokenizer")
        super().__init__(base, added, {"tokenizer": tokenizer})
        check_same_tokenizer(tokenizer, input_path(added, self._added, "tokenizer"), str(added))
        # What is in the store may be of more splits than the base had.
        splits = {*self._base.config["splits"], *self._added.config["splits"]}
        self.config = {**self.config, "splits": sorted(splits)}

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """The order of use, and the figures of both."""
        first = self._base.rows
        with NpyWriter(out / ORDER_NAME, np.int64) as order:
            for name, offset in (("base", 0), ("added", first)):
                for block in NpyReader(self.inputs[name] / ORDER_NAME, np.int64).blocks(_BLOCK):
                    order.append(block + offset)
        figures = {name: self._sum(name) for name in ("documents", "tokens", "text_bytes")}
        return {**self._base.stats, **figures}


class ExtendChunksStage(ExtendStage):
    """Chunks of the base, then the added ones; `tokens` is what ExtendTokensStage made of their tokens."""

    name = "extend_chunks"
    kind = CHUNKS_KIND

    def __init__(self, base: Path, added: Path, tokens: Path) -> None:
        super().__init__(base, added, {"tokens": tokens})
        manifest = open_manifest(tokens, TOKENS_KIND)
        for name in ("base", "added"):
            self._check_input(name, "tokens", manifest.inputs.get(name, {}).get("fingerprint", "none"))
        if self._added.config["chunk_length"] != self._base.config["chunk_length"]:
            raise ArtifactMismatchError(
                f"{added}: expected chunks of {self._base.config['chunk_length']} tokens, as the base has, found "
                f"{self._added.config['chunk_length']}"
            )

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Link what the base has; the places of added chunks move behind it."""
        if shard.spec["input"] == "base":
            return super().run_shard(shard, out)
        folder = self.inputs["added"]
        record = find_shard(folder, shard.spec["shard"])
        tokens = open_manifest(input_path(self.inputs["base"], self._base, "tokens"), TOKENS_KIND)
        offsets = {"starts": int(tokens.stats["tokens"]), "documents": tokens.rows, "spans": 0}
        for part, offset in offsets.items():
            with NpyWriter(out / f"{part}-{shard.name}.npy", np.int64) as writer:
                for block in NpyReader(folder / f"{part}-{record['name']}.npy", np.int64).blocks(_BLOCK):
                    writer.append(block + offset)
        return ShardResult(int(record["rows"]), record["stats"])

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """The documents by key, and the figures of both."""
        write_lookup(open_sharded(folder, "documents", records, np.int64), open_token_store(self.inputs["tokens"]), out)
        return {name: self._sum(name) for name in ("chunks", "short", "documents", "tokens")}


class ExtendEmbeddingsStage(ExtendStage):
    """Vectors of the base, then the added ones; `chunks` is what ExtendChunksStage made of their chunks."""

    name = "extend_embeddings"
    kind = EMBEDDINGS_KIND

    def __init__(self, base: Path, added: Path, chunks: Path) -> None:
        embedder = input_path(base, open_manifest(base, EMBEDDINGS_KIND), "embedder")
        super().__init__(base, added, {CHUNKS_KIND: chunks, "embedder": embedder})
        manifest = open_manifest(chunks, CHUNKS_KIND)
        for name in ("base", "added"):
            self._check_input(name, CHUNKS_KIND, manifest.inputs.get(name, {}).get("fingerprint", "none"))
        check_recipe(self._base.config["recipe"], self._added.config["recipe"], str(added))

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Figures of both."""
        return {"zero_vectors": self._sum("zero_vectors")}
