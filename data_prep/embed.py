"""Stages that turn chunks into vectors: fit_embedder (the recipe, and what is fitted on the database) and embed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.execution.devices import visible_gpus
from data_prep.stage import Shard, ShardResult, Stage
from retro.artifacts.manifest import open_manifest
from retro.config.errors import ConfigError
from retro.config.loader import to_dict
from retro.config.prep_embed import EmbedConfig, TransformerConfig
from retro.config.sections import result_fields
from retro.data.chunk_store import ChunkStore, open_chunk_store
from retro.data.tokenizer import Tokenizer
from retro.retrieval.chunk_text import CHUNKS_KIND, chunk_token_rows, decode_rows, open_chunk_tokenizer
from retro.retrieval.embedder import EMBEDDER_KIND, Embedder, open_embedder, read_recipe, write_recipe
from retro.retrieval.encoder_files import find_encoder
from retro.retrieval.lexical import IDF_NAME, LexicalEmbedder, count_documents, idf_of_counts
from retro.retrieval.transformer import TransformerEmbedder
from retro.retrieval.vector_check import check_finite
from retro.retrieval.vectors import EMBEDDINGS_KIND

# Chunks that an embedder sees together: enough to sort them by length into full batches. Another number would be
# another composition of batches, and with it another version of the stage.
_WINDOW = 8192
_SMALLEST_SHARD, _LARGEST_SHARD = 4096, 32768


def range_shards(rows: int, size: int) -> list[Shard]:
    """Contiguous ranges of at most `size` rows; one empty shard where there are none."""
    starts = range(0, max(rows, 1), size)
    return [Shard(f"{i:05d}", {"start": s, "stop": min(s + size, rows)}) for i, s in enumerate(starts)]


class _ChunkReader:
    """Text of chunks."""

    def __init__(self, folder: Path) -> None:
        self.store: ChunkStore = open_chunk_store(folder)
        self.tokenizer: Tokenizer = open_chunk_tokenizer(folder)

    def windows(self, ids: np.ndarray) -> Iterator[list[str]]:
        """Texts of the chunks (ids int64 [n]), without special tokens, a window at a time; "" for a removed one."""
        for first in range(0, len(ids), _WINDOW):
            yield decode_rows(self.tokenizer, chunk_token_rows(self.store, ids[first : first + _WINDOW]))


class FitEmbedderStage(Stage):
    """Chunks of the database -> embedder: its recipe, and for the lexical one the idf of the database.

    Document frequencies are counted on at most `fit_chunks` chunks, spread evenly over the database: the documents lie
    there in random order. A transformer has nothing to fit, but `precision: auto` and `batch_tokens: 0` become what
    suits the machine; it is tried on a text, so that what cannot be loaded is found here. The hashes of its files are
    part of the fingerprint: other weights in the same folder are another embedder. Raises ConfigError where there are
    none.
    """

    name = "fit_embedder"
    version = 2
    kind = EMBEDDER_KIND

    def __init__(self, config: EmbedConfig, chunks: Path) -> None:
        fields = result_fields(config)
        fields = {"kind": config.kind, config.kind: fields[config.kind]}
        if config.kind == "transformer":
            fields["encoder"] = find_encoder(config.transformer).hashes()
        super().__init__(fields, {CHUNKS_KIND: chunks})
        self._embed = config

    @property
    def gpus(self) -> int:
        """1 where a transformer runs on one."""
        return gpus_of_embedder(self._embed.kind, self._embed.transformer.device)

    @cached_property
    def _reader(self) -> _ChunkReader:
        return _ChunkReader(self.inputs[CHUNKS_KIND])

    def plan(self) -> list[Shard]:
        """Ranges of the chunks that frequencies are counted on; a transformer has one empty shard."""
        if self._embed.kind == "transformer":
            return [Shard("00000", {"start": 0, "stop": 0})]
        rows = open_manifest(self.inputs[CHUNKS_KIND]).rows
        return range_shards(min(rows, self._embed.lexical.fit_chunks), 131072)

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Count, per hash bucket, the chunks that have a term in it; or resolve and try the encoder."""
        start, stop = shard.spec["start"], shard.spec["stop"]
        if self._embed.kind == "transformer":
            recipe = _transformer_recipe(self._embed.transformer)
            (out / f"resolved-{shard.name}.json").write_text(json.dumps(recipe, sort_keys=True), encoding="utf-8")
            return ShardResult(0)
        rows = self._reader.store.num_chunks
        sample = min(rows, self._embed.lexical.fit_chunks)
        windows = self._reader.windows(np.arange(start, stop) * rows // max(sample, 1))
        frequency, _ = count_documents(windows, self._embed.lexical)
        np.save(out / f"frequency-{shard.name}.npy", frequency.astype(np.int32))
        return ShardResult(stop - start)

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Write the recipe and what was fitted."""
        if self._embed.kind == "transformer":
            resolved = folder / f"resolved-{records[0]['name']}.json"
            recipe: dict[str, Any] = json.loads(resolved.read_text(encoding="utf-8"))
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
        identity = stats["identity"]
        found = [f"{self._embed.kind} embedder", f"{identity['dimension']} dimensions"]
        if self._embed.kind == "transformer":
            found += [identity["precision"], f"batches of {identity['batch_tokens']} tokens"]
        else:
            found.append(f"idf of {rows:,} chunks")
        return ", ".join(found)


class EmbedStage(Stage):
    """Chunks + embedder -> embeddings: vectors-<shard>.npy, [n, d] in the storage type; the recipe in the manifest.

    The vectors of a shard are made by windows of 8,192 chunks from its first on: they depend on nothing outside it.
    """

    name = "embed"
    version = 2
    kind = EMBEDDINGS_KIND

    def __init__(self, config: EmbedConfig, chunks: Path, embedder: Path) -> None:
        open_manifest(embedder, EMBEDDER_KIND)
        recipe = read_recipe(embedder)["identity"]
        fields = {"storage": config.storage, "shard_chunks": config.shard_chunks, "recipe": recipe}
        super().__init__(fields, {CHUNKS_KIND: chunks, "embedder": embedder})
        self._device = config.transformer.device

    @property
    def gpus(self) -> int:
        """1 where a transformer runs on one."""
        return gpus_of_embedder(self.config["recipe"]["kind"], self._device)

    @cached_property
    def _embedder(self) -> Embedder:
        return open_embedder(self.inputs["embedder"], self._device)

    @cached_property
    def _reader(self) -> _ChunkReader:
        return _ChunkReader(self.inputs[CHUNKS_KIND])

    def plan(self) -> list[Shard]:
        """Contiguous ranges of chunks."""
        rows = open_manifest(self.inputs[CHUNKS_KIND]).rows
        size = self.config["shard_chunks"] or min(max(rows // 64, _SMALLEST_SHARD), _LARGEST_SHARD)
        return range_shards(rows, size)

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Embed the text of each chunk. Raises RetroError naming a chunk whose vector is not finite."""
        start, stop = shard.spec["start"], shard.spec["stop"]
        vectors = np.zeros((stop - start, self._embedder.dimension), dtype=self.config["storage"])
        first = 0
        for block in self._embedder.embed_blocks(self._reader.windows(np.arange(start, stop))):
            check_finite(block, self._named(start + first))
            stored = vectors[first : first + len(block)]
            with np.errstate(over="ignore"):
                stored[:] = block
            if not np.isfinite(stored).all():
                raise ConfigError(
                    f"embed.storage: {self.config['storage']} cannot hold {np.abs(block).max():.3g}, which the vectors "
                    "reach; set storage=float32 or normalise=true"
                )
            first += len(block)
        np.save(out / f"vectors-{shard.name}.npy", vectors)
        return ShardResult(stop - start, {"zero_vectors": int((~vectors.any(axis=1)).sum())})

    def _named(self, first: int) -> Callable[[int], str]:
        return lambda row: f"chunk {first + row} of {self.inputs[CHUNKS_KIND]}"

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Figures only."""
        return {"zero_vectors": sum(record["stats"]["zero_vectors"] for record in records)}

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """For people."""
        return f"{rows:,} vectors, {stats['zero_vectors']:,} of them of chunks without content"


def gpus_of_embedder(kind: str, device: str) -> int:
    """GPUs that a worker with this embedder is to be given: 1 for a transformer unless it runs on CPU.

    With device cuda:N all workers use that one, so none is handed out; with auto where this machine shows a GPU.
    """
    if kind != "transformer":
        return 0
    return int(device == "cuda" or (device == "auto" and len(visible_gpus()) > 0))


def _transformer_recipe(config: TransformerConfig) -> dict[str, Any]:
    """The recipe of the encoder, resolved for this machine and tried."""
    embedder = TransformerEmbedder(config)
    vectors = embedder.embed(["A text, to see whether the encoder works.", ""])
    if vectors.shape[1] != embedder.dimension or not vectors[0].any():
        found = "all 0" if vectors.shape[1] == embedder.dimension else f"{vectors.shape[1]} numbers"
        raise ConfigError(
            f"transformer.model {config.model!r}: expected a vector of {embedder.dimension} numbers, not all 0, "
            f"found {found}; it is no text encoder"
        )
    options = {k: v for k, v in to_dict(embedder.config).items() if k != "device"}
    return {"kind": "transformer", "identity": embedder.identity(), "options": options}
