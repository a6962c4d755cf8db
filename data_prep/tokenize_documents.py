"""Stage tokenize: documents of some splits become tokens, and a seeded shuffle says in which order they are used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.stage import Shard, ShardResult, Stage
from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactError, ConfigError
from retro.config.loader import to_dict
from retro.config.prep_tokens import TokensConfig
from retro.data.document import DOCUMENTS_KIND, Document, document_files, document_key, read_documents
from retro.data.token_store import DTYPES, ORDER_NAME, TOKENS_KIND
from retro.data.tokenizer import TOKENIZER_KIND, Tokenizer, open_tokenizer

_BATCH_CHARACTERS = 1 << 20


class TokenizeStage(Stage):
    """Documents + tokenizer -> tokens (files: retro/data/token_store.py). One artifact per set of splits.

    A shard takes whole document files, streamed: memory is one batch of texts, whatever the size of the shard. The
    shuffle is by hash of (seed, document id), so that neither the order nor the sharding of the corpus matters to it;
    it is an index (8 bytes per document) instead of a second copy of the tokens, and the chunk stage follows it.
    """

    name = "tokenize"
    version = 1
    kind = TOKENS_KIND

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
        """Consecutive document files, as many as `shard_bytes` says."""
        manifest = open_manifest(self.inputs["documents"], DOCUMENTS_KIND)
        sizes = {entry["name"]: int(entry["bytes"]) for entry in manifest.all_files()}
        groups: list[list[str]] = []
        room = 0
        for path in document_files(self.inputs["documents"]):
            if room <= 0:
                groups.append([])
                room = self.tokens.shard_bytes
            groups[-1].append(path.name)
            room -= sizes[path.name]
        return [Shard(f"{i:05d}", {"files": files}) for i, files in enumerate(groups)]

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Tokenize the shard's documents."""
        lengths: list[int] = []
        keys: list[int] = []
        ranks: list[int] = []
        text_bytes = 0
        bos, eos = self._tokenizer.bos_id, self._tokenizer.eos_id
        dtype = DTYPES[self._dtype]
        with (
            open(out / f"tokens-{shard.name}.bin", "wb") as tokens,
            open(out / f"docs-{shard.name}.jsonl", "w", encoding="utf-8", newline="\n") as records,
        ):
            for batch in self._batches(shard.spec["files"]):
                for document, ids in zip(batch, self._tokenizer.encode_batch([d.text for d in batch]), strict=True):
                    row = np.array([bos, *ids, eos], dtype=dtype)
                    tokens.write(row.tobytes())
                    lengths.append(len(row))
                    keys.append(document_key(document.id))
                    ranks.append(order_rank(self.tokens.seed, document.id))
                    text_bytes += len(document.text.encode("utf-8"))
                    record = {name: getattr(document, name) for name in ("id", "title", "source", "group")}
                    records.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(lengths, dtype=np.int64))])
        np.save(out / f"offsets-{shard.name}.npy", offsets, allow_pickle=False)
        np.save(out / f"keys-{shard.name}.npy", np.array(keys, dtype=np.uint64), allow_pickle=False)
        np.save(out / f"ranks-{shard.name}.npy", np.array(ranks, dtype=np.uint64), allow_pickle=False)
        return ShardResult(len(lengths), {"tokens": int(offsets[-1]), "text_bytes": text_bytes})

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Order the documents. Memory: 24 bytes per document.

        Raises ConfigError if the splits have no document and ArtifactError if two documents have one key.
        """
        ranks = _concatenate(folder, "ranks", records)
        keys = _concatenate(folder, "keys", records)
        if len(keys) == 0:
            raise ConfigError(
                f"no document of the splits {', '.join(self.tokens.splits)} is in the corpus; set ingest.split so that "
                "each of query_splits gets some (its fractions, groups, files or field), or ingest more text"
            )
        sorted_keys = np.sort(keys)
        if bool((sorted_keys[1:] == sorted_keys[:-1]).any()):
            raise ArtifactError(
                f"{self.inputs['documents']}: two documents have one id; ids must be unique, ingest the corpus again"
            )
        np.save(out / ORDER_NAME, np.lexsort((keys, ranks)).astype(np.int64), allow_pickle=False)
        return {
            "documents": len(keys),
            "tokens": sum(record["stats"]["tokens"] for record in records),
            "text_bytes": sum(record["stats"]["text_bytes"] for record in records),
            "dtype": self._dtype,
            "vocab_size": self._tokenizer.vocab_size,
            "bos_id": self._tokenizer.bos_id,
            "eos_id": self._tokenizer.eos_id,
        }

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """For people."""
        per_token = stats["text_bytes"] / max(stats["tokens"], 1)
        splits = "+".join(self.tokens.splits)
        return f"{splits}: {stats['tokens']:,} tokens of {rows:,} documents, {per_token:.2f} bytes per token"

    def _batches(self, files: list[str]) -> Iterator[list[Document]]:
        batch: list[Document] = []
        characters = 0
        for file in files:
            for document in read_documents(self.inputs["documents"] / file):
                if document.split not in self.tokens.splits:
                    continue
                batch.append(document)
                characters += len(document.text)
                if characters >= _BATCH_CHARACTERS:
                    yield batch
                    batch, characters = [], 0
        if batch:
            yield batch


def order_rank(seed: int, document_id: str) -> int:
    """Place of a document in the seeded shuffle, as a uint64: blake2b over seed and id."""
    digest = hashlib.blake2b(f"{seed}\0{document_id}".encode(), digest_size=8, person=b"retro-order").digest()
    return int.from_bytes(digest, "little")


def _concatenate(folder: Path, part: str, records: list[dict[str, Any]]) -> np.ndarray:
    arrays = [np.load(folder / f"{part}-{record['name']}.npy", allow_pickle=False) for record in records]
    return np.concatenate([np.zeros(0, np.uint64), *arrays])
