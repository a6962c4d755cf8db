"""Stage tokenize: documents of some splits become tokens, and a seeded shuffle says in which order they are used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_prep.document_shards import document_shards, read_shard
from data_prep.external_sort import MEMORY_BYTES, find_repeats, sort_runs
from data_prep.stage import Shard, ShardResult, Stage
from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactError, ConfigError
from retro.config.loader import to_dict
from retro.config.prep_tokens import TokensConfig
from retro.data.document import Document
from retro.data.npy_file import NpyReader, NpyWriter
from retro.data.token_store import ORDER_NAME, TOKENS_KIND
from retro.data.token_writer import ShardWriter
from retro.data.tokenizer import TOKENIZER_KIND, Tokenizer, open_tokenizer

_BATCH_CHARACTERS, _BATCH_DOCUMENTS = 1 << 18, 1 << 12
_PLACE = np.dtype([("rank", "<u8"), ("key", "<u8"), ("number", "<i8")])
_BLOCK = 1 << 16


class TokenizeStage(Stage):
    """Documents + tokenizer -> tokens (files: retro/data/token_store.py). One artifact per set of splits.

    A shard's documents are streamed: memory is one batch of texts, whatever the size of the shard. The
    shuffle is by hash of (seed, document id), so that neither the order nor the sharding of the corpus matters to it;
    it is an index (8 bytes per document) instead of a second copy of the tokens, and the chunk stage follows it.
    """

    name = "tokenize"
    version = 2
    kind = TOKENS_KIND
    may_be_empty = False  # whether a corpus without a document of these splits is no mistake
    # Of the closing step's sorts.
    memory_bytes: ClassVar[int] = MEMORY_BYTES

    def __init__(self, config: TokensConfig, documents: Path, tokenizer: Path) -> None:
        open_manifest(tokenizer, TOKENIZER_KIND)
        self.tokens = config
        settings = {**to_dict(config), "splits": sorted(config.splits)}
        super().__init__(settings, {"documents": documents, "tokenizer": tokenizer})

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return open_tokenizer(self.inputs["tokenizer"])

    @cached_property
    def _dtype(self) -> str:
        return "uint16" if self._tokenizer.vocab_size < 1 << 16 else "uint32"

    def plan(self) -> list[Shard]:
        """Consecutive document files, or parts of one, of about `shard_bytes`."""
        return document_shards(self.inputs["documents"], self.tokens.shard_bytes)

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Tokenize the shard's documents, batch by batch."""
        rows = tokens = text_bytes = 0
        with ShardWriter(out, shard.name, self._dtype) as writer:
            for batch in self._batches(shard.spec):
                ids = self._tokenizer.encode_batch([document.text for document in batch])
                ranks = np.fromiter((order_rank(self.tokens.seed, d.id) for d in batch), np.uint64, len(batch))
                writer.write(batch, ids, self._tokenizer.bos_id, self._tokenizer.eos_id, ranks)
                text_bytes += sum(len(document.text.encode("utf-8")) for document in batch)
            rows, tokens = writer.documents, writer.tokens
        return ShardResult(rows, {"tokens": tokens, "text_bytes": text_bytes})

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Order the documents, on disk: memory does not depend on their number.

        Raises ConfigError if the splits have no document and ArtifactError if two documents have one key.
        """
        documents = sum(int(record["rows"]) for record in records)
        if documents == 0 and not self.may_be_empty:
            raise ConfigError(
                f"no document of the splits {', '.join(self.tokens.splits)} is in the corpus; set ingest.split so that "
                "each of query_splits gets some (its fractions, groups, files or field), or ingest more text"
            )
        self._check_keys(folder, out, records)
        write_order(folder, records, out / ORDER_NAME, self.memory_bytes)
        return {
            "documents": documents,
            "tokens": sum(record["stats"]["tokens"] for record in records),
            "text_bytes": sum(record["stats"]["text_bytes"] for record in records),
            "dtype": self._dtype,
            "vocab_size": self._tokenizer.vocab_size,
            "bos_id": self._tokenizer.bos_id,
            "eos_id": self._tokenizer.eos_id,
            "lossless": self._tokenizer.lossless,
        }

    def _check_keys(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> None:
        """Documents are told apart by key everywhere, so two with one key must not pass."""
        path = sort_runs(
            [folder / f"keys-{r['name']}.npy" for r in records], out / ".keys.npy", np.uint64, self.memory_bytes
        )
        twice = next(find_repeats(path), None)
        path.unlink()
        if twice is not None:
            raise ArtifactError(
                f"{self.inputs['documents']}: two documents have one id; ids must be unique, ingest the corpus again"
            )

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """For people."""
        per_token = stats["text_bytes"] / max(stats["tokens"], 1)
        splits = "+".join(self.tokens.splits)
        line = f"{splits}: {stats['tokens']:,} tokens of {rows:,} documents, {per_token:.2f} bytes per token"
        if stats["lossless"]:
            return line
        # What was normalised away is not in the tokens, so that bytes counted from tokens are not those of the text.
        return f"{line}; the tokenizer is not lossless, so bits per byte will be approximate"

    def _batches(self, spec: dict[str, Any]) -> Iterator[list[Document]]:
        batch: list[Document] = []
        characters = 0
        for document in read_shard(self.inputs["documents"], spec):
            if document.split not in self.tokens.splits:
                continue
            batch.append(document)
            characters += len(document.text)
            if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
                yield batch
                batch, characters = [], 0
        if batch:
            yield batch


def order_rank(seed: int, document_id: str) -> int:
    """Place of a document in the seeded shuffle, as a uint64: blake2b over seed and id."""
    digest = hashlib.blake2b(f"{seed}\0{document_id}".encode(), digest_size=8, person=b"retro-order").digest()
    return int.from_bytes(digest, "little")


def write_order(folder: Path, records: list[dict[str, Any]], out: Path, memory_bytes: int = MEMORY_BYTES) -> None:
    """Write the numbers of all documents by (rank, key), int64 [D], to `out`, from the ranks and keys of the shards."""

    def runs() -> Iterator[np.ndarray]:
        number = 0
        for record in records:
            ranks = NpyReader(folder / f"ranks-{record['name']}.npy", np.uint64)
            keys = NpyReader(folder / f"keys-{record['name']}.npy", np.uint64)
            for rank, key in zip(ranks.blocks(_BLOCK), keys.blocks(_BLOCK), strict=True):
                places = np.empty(len(rank), _PLACE)
                places["rank"], places["key"] = rank, key
                places["number"] = np.arange(number, number + len(rank))
                number += len(rank)
                yield places

    places = sort_runs(runs(), out.with_name(".places.npy"), _PLACE, memory_bytes)
    with NpyWriter(out, np.int64) as order:
        for block in NpyReader(places).blocks(_BLOCK):
            order.append(block["number"])
    places.unlink()
