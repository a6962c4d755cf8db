"""Stages that turn chunks into vectors: fit_embedder (the recipe, and what is fitted on the database) and embed."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.stage import Shard, ShardResult, Stage
from retro.artifacts.manifest import open_manifest
from retro.config.loader import to_dict
from retro.config.prep_embed import EmbedConfig
from retro.config.sections import result_fields
from retro.data.chunk_store import ChunkStore, open_chunk_store
from retro.data.tokenizer import Tokenizer
from retro.retrieval.chunk_text import CHUNKS_KIND, chunk_token_rows, decode_rows, open_chunk_tokenizer
from retro.retrieval.embedder import EMBEDDER_KIND, RECIPE_NAME, Embedder, open_embedder, write_recipe
from retro.retrieval.lexical import IDF_NAME, LexicalEmbedder, count_documents, idf_of_counts
from retro.retrieval.transformer import TransformerEmbedder
from retro.retrieval.vectors import EMBEDDINGS_KIND

_BLOCK = 4096


def range_shards(rows: int, size: int) -> list[Shard]:
    """Contiguous ranges of at most `size` rows; one empty shard where there are none."""
    starts = range(0, max(rows, 1), size)
    return [Shard(f"{i:05d}", {"start": s, "stop": min(s + size, rows)}) for i, s in enumerate(starts)]


class _ChunkReader:
    """Text of a range of chunks."""

    def __init__(self, folder: Path) -> None:
        self.store: ChunkStore = open_chunk_store(folder)
        self.tokenizer: Tokenizer = open_chunk_tokenizer(folder)

    def texts(self, start: int, stop: int) -> list[str]:
        return decode_rows(self.tokenizer, chunk_token_rows(self.store, np.arange(start, stop)))

    def blocks(self, start: int, stop: int) -> Any:
        for first in range(start, stop, _BLOCK):
            yield self.texts(first, min(first + _BLOCK, stop))


class FitEmbedderStage(Stage):
    """Chunks of the database -> embedder: its recipe, and for the lexical one the idf of the database.

    For a transformer the weights' hash is part of the fingerprint, so that other weights in the same folder are
    another embedder. Raises ConfigError if the model cannot be loaded.
    """

    name = "fit_embedder"
    kind = EMBEDDER_KIND

    def __init__(self, config: EmbedConfig, chunks: Path) -> None:
        fields = result_fields(config)
        fields = {"kind": config.kind, config.kind: fields[config.kind]}
        if config.kind == "transformer":
            fields["identity"] = TransformerEmbedder(config.transformer).identity()
        super().__init__(fields, {CHUNKS_KIND: chunks})
        self._embed = config

    def plan(self) -> list[Shard]:
        """Document frequencies are counted by ranges of chunks; a transformer has nothing to count."""
        if self._embed.kind == "transformer":
            return [Shard("00000", {"start": 0, "stop": 0})]
        return range_shards(open_manifest(self.inputs[CHUNKS_KIND]).rows, 131072)

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Count, per hash bucket, the chunks that have a term in it."""
        start, stop = shard.spec["start"], shard.spec["stop"]
        if self._embed.kind == "lexical":
            blocks = _ChunkReader(self.inputs[CHUNKS_KIND]).blocks(start, stop)
            frequency, _ = count_documents(blocks, self._embed.lexical)
            np.save(out / f"frequency-{shard.name}.npy", frequency.astype(np.int32))
        return ShardResult(stop - start)

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Write the recipe and what was fitted."""
        if self._embed.kind == "transformer":
            options = {k: v for k, v in to_dict(self._embed.transformer).items() if k != "device"}
            recipe = {"kind": "transformer", "identity": self.config["identity"], "options": options}
        else:
            config = self._embed.lexical
            frequency = np.zeros(config.buckets, dtype=np.int64)
            for record in records:
                frequency += np.load(folder / f"frequency-{record['name']}.npy", allow_pickle=False)
            idf = idf_of_counts(frequency, sum(r["rows"] for r in records), config)
            np.save(out / IDF_NAME, idf)
            identity = LexicalEmbedder(config, idf).identity()
            recipe = {"kind": "lexical", "identity": identity, "options": to_dict(config)}
        write_recipe(out, recipe)
        return {"identity": recipe["identity"]}

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """For people."""
        return f"{self._embed.kind} embedder, {stats['identity']['dimension']} dimensions"


class EmbedStage(Stage):
    """Chunks + embedder -> embeddings: vectors-<shard>.npy, [n, d] in the storage type; the recipe in the manifest."""

    name = "embed"
    kind = EMBEDDINGS_KIND

    def __init__(self, config: EmbedConfig, chunks: Path, embedder: Path) -> None:
        open_manifest(embedder, EMBEDDER_KIND)
        import json

        recipe = json.loads((Path(embedder) / RECIPE_NAME).read_text(encoding="utf-8"))["identity"]
        fields = {"storage": config.storage, "shard_chunks": config.shard_chunks, "recipe": recipe}
        super().__init__(fields, {CHUNKS_KIND: chunks, "embedder": embedder})
        self._device = config.transformer.device

    @cached_property
    def _embedder(self) -> Embedder:
        return open_embedder(self.inputs["embedder"], self._device)

    @cached_property
    def _reader(self) -> _ChunkReader:
        return _ChunkReader(self.inputs[CHUNKS_KIND])

    def plan(self) -> list[Shard]:
        """Contiguous ranges of chunks."""
        return range_shards(open_manifest(self.inputs[CHUNKS_KIND]).rows, self.config["shard_chunks"])

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Embed the text of each chunk."""
        start, stop = shard.spec["start"], shard.spec["stop"]
        vectors = np.zeros((stop - start, self._embedder.dimension), dtype=self.config["storage"])
        for first in range(start, stop, _BLOCK):
            last = min(first + _BLOCK, stop)
            vectors[first - start : last - start] = self._embedder.embed(self._reader.texts(first, last))
        np.save(out / f"vectors-{shard.name}.npy", vectors)
        return ShardResult(stop - start, {"zero_vectors": int((~vectors.any(axis=1)).sum())})

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Figures only."""
        return {"zero_vectors": sum(record["stats"]["zero_vectors"] for record in records)}

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """For people."""
        return f"{rows:,} vectors, {stats['zero_vectors']:,} of them of chunks without content"
