"""Small artifacts written straight to disk, without the stages: tokens, chunks, neighbors, tokenizer.

`build_tiny_release(tmp_path)` makes a whole consistent set. The content is random but seeded.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.train_tokenizer import BOS_ID, EOS_ID, PAD_ID, train_sentencepiece
from retro.artifacts.fingerprint import fingerprint
from retro.artifacts.manifest import Manifest, describe_file, open_manifest, write_manifest
from retro.config.prep_tokens import SentencePieceConfig
from retro.data.chunk_store import ChunkStore, open_chunk_store
from retro.data.document import document_key
from retro.data.neighbor_table import NeighborTable, open_neighbor_table
from retro.data.tokenizer import SentencePieceTokenizer, write_tokenizer

BOS, EOS, PAD = BOS_ID, EOS_ID, PAD_ID
TEXTS = [
    "the quick brown fox jumps over the lazy dog\n\tand 12345 times again",
    "def f(x):\n    return x + 1\n",
    "a tensor of the same shape as the input tensor, with the same type",
    "returns the number of documents that the store holds and the number of tokens",
] * 20


@dataclass(frozen=True)
class TinyRelease:
    """Folders of a consistent set, and the documents (token ids, without begin and end) behind it."""

    tokenizer: Path
    tokens: Path
    chunks: Path
    neighbors: Path
    documents: list[list[int]]

    def open(self) -> tuple[ChunkStore, NeighborTable]:
        store = open_chunk_store(self.chunks)
        return store, open_neighbor_table(self.neighbors, store, store)


def build_tiny_release(
    root: Path,
    *,
    num_documents: int = 24,
    chunk_length: int = 8,
    keep: int = 4,
    shards: int = 1,
    longest: int = 60,
    vocab_size: int = 300,
    missing: float = 0.2,
    seed: int = 0,
) -> TinyRelease:
    """Random documents of 1 to `longest` tokens that are their own database, in `shards` shards."""
    generator = np.random.default_rng(seed)
    documents = [
        generator.integers(4, vocab_size, size=generator.integers(1, longest + 1)).tolist()
        for _ in range(num_documents)
    ]
    tokenizer = write_fake_tokenizer(root / "tokenizer", vocab_size)
    groups = [list(part) for part in np.array_split(np.arange(num_documents), shards)]
    tokens = write_tokens(
        root / "tokens", [[documents[i] for i in group] for group in groups], tokenizer, vocab_size=vocab_size
    )
    chunks = write_chunks(root / "chunks", tokens, chunk_length, shards=shards)
    table = random_neighbors(chunks, keep, missing, seed + 1)
    neighbors = write_neighbors(root / "neighbors", chunks, chunks, table, shards=shards)
    return TinyRelease(tokenizer, tokens, chunks, neighbors, documents)


def write_artifact(
    folder: Path,
    kind: str,
    config: dict[str, Any],
    inputs: dict[str, Path],
    shards: list[tuple[str, int]],
    stats: dict[str, Any] | None = None,
) -> Path:
    """Finish a folder: the manifest over the files in it; `part-<shard>...` is that shard's, others are of the end."""
    found = {name: open_manifest(path) for name, path in inputs.items()}
    files = [describe_file(path) for path in sorted(folder.iterdir())]
    of_shard = {name: [f for f in files if f["name"].split(".")[0].split("-")[1:2] == [name]] for name, _ in shards}
    content = {f["name"]: f["sha256"] for f in files}
    write_manifest(
        folder,
        Manifest(
            kind=kind,
            stage=kind,
            stage_version=1,
            fingerprint=fingerprint(
                kind, 1, {**config, "files": content}, {n: m.fingerprint for n, m in found.items()}
            ),
            config=config,
            inputs={
                n: {"kind": m.kind, "fingerprint": m.fingerprint, "path": f"../{inputs[n].name}"}
                for n, m in found.items()
            },
            shards=[{"name": n, "rows": rows, "files": of_shard[n], "stats": {}} for n, rows in shards],
            files=[f for f in files if not any(f in own for own in of_shard.values())],
            stats=stats or {},
        ),
    )
    return folder


def write_fake_tokenizer(folder: Path, vocab_size: int = 300, pad_id: int = PAD) -> Path:
    """An artifact of kind tokenizer that is only ever referred to."""
    folder.mkdir(parents=True)
    config = {"vocab_size": vocab_size, "bos_id": BOS, "eos_id": EOS, "pad_id": pad_id}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return write_artifact(folder, "tokenizer", {}, {}, [])


def write_real_tokenizer(folder: Path, vocab_size: int = 300) -> Path:
    """A sentencepiece tokenizer trained on a few lines."""
    folder.mkdir(parents=True)
    model = train_sentencepiece(TEXTS, SentencePieceConfig(vocab_size=vocab_size))
    write_tokenizer(folder, SentencePieceTokenizer(model, BOS, EOS, PAD, lossless=True, fingerprint=""), model)
    return write_artifact(folder, "tokenizer", {}, {}, [])


def write_tokens(
    folder: Path,
    shards: list[list[list[int]]],
    tokenizer: Path,
    *,
    vocab_size: int = 300,
    names: str = "doc-{}",
    groups: list[str] | None = None,
    document_ids: list[str] | None = None,
) -> Path:
    """A tokens artifact of documents (token ids without begin and end); document_ids: by default their numbers in
    `names`; groups: of each document, by default one for all."""
    folder.mkdir(parents=True)
    dtype = np.dtype("<u2") if vocab_size < 1 << 16 else np.dtype("<u4")
    number = 0
    for s, documents in enumerate(shards):
        rows = [[BOS, *ids, EOS] for ids in documents]
        (folder / f"tokens-{s:05d}.bin").write_bytes(np.array([t for r in rows for t in r], dtype).tobytes())
        offsets = [sum(len(r) for r in rows[:i]) for i in range(len(rows) + 1)]
        np.save(folder / f"offsets-{s:05d}.npy", np.array(offsets, np.int64))
        if document_ids is None:
            ids = [names.format(number + i) for i in range(len(rows))]
        else:
            ids = document_ids[number : number + len(rows)]
        np.save(folder / f"keys-{s:05d}.npy", np.array([document_key(i) for i in ids], np.uint64))
        of = ["g"] * len(ids) if groups is None else groups[number : number + len(ids)]
        records = [{"id": i, "title": i.upper(), "source": "made:1", "group": g} for i, g in zip(ids, of, strict=True)]
        lines = [json.dumps(record) + "\n" for record in records]
        (folder / f"docs-{s:05d}.jsonl").write_text("".join(lines))
        number += len(rows)
    shuffled = sorted(range(number), key=lambda i: hashlib.sha256(names.format(i).encode()).digest())
    np.save(folder / "order.npy", np.array(shuffled, np.int64))
    stats = {"dtype": "uint16" if dtype.itemsize == 2 else "uint32", "vocab_size": vocab_size}
    return write_artifact(
        folder,
        "tokens",
        {"splits": ["train"]},
        {"tokenizer": tokenizer},
        [(f"{s:05d}", len(documents)) for s, documents in enumerate(shards)],
        {**stats, "bos_id": BOS, "eos_id": EOS},
    )


def write_chunks(folder: Path, tokens: Path, chunk_length: int, shards: int = 1) -> Path:
    """A chunks artifact, cut by a plain loop."""
    folder.mkdir(parents=True)
    manifest = open_manifest(tokens, "tokens")
    ends = [0]
    for shard in manifest.shards:
        own = np.load(tokens / f"offsets-{shard['name']}.npy")
        ends += (own[1:] + ends[-1]).tolist()
    entries = []
    for document in np.load(tokens / "order.npy").tolist():
        for start in range(ends[document], ends[document + 1], chunk_length):
            entries.append((start, document, ends[document + 1] - start))
    parts = np.array_split(np.array(entries, np.int64), shards)
    for s, part in enumerate(parts):
        for column, name in enumerate(("starts", "documents", "spans")):
            np.save(folder / f"{name}-{s:05d}.npy", np.ascontiguousarray(part[:, column]))
    names = [(f"{s:05d}", len(part)) for s, part in enumerate(parts)]
    return write_artifact(folder, "chunks", {"chunk_length": chunk_length}, {"tokens": tokens}, names)


def random_neighbors(chunks: Path, keep: int, missing: float, seed: int) -> np.ndarray:
    """A valid table: random chunks of documents other than the row's own, some rows cut short by -1."""
    generator = np.random.default_rng(seed)
    files = sorted(chunks.glob("documents-*.npy"))
    documents = np.concatenate([np.load(file) for file in files])
    table = np.full((len(documents), keep), -1, np.int64)
    for row in range(len(documents)):
        allowed = np.flatnonzero(documents != documents[row])
        count = min(keep, len(allowed))
        if generator.random() < missing:
            count = int(generator.integers(0, count + 1))
        table[row, :count] = generator.choice(allowed, size=count, replace=False) if count else []
    return table


def write_neighbors(
    folder: Path, queries: Path, database: Path, table: np.ndarray, shards: int = 1, **config: Any
) -> Path:
    """A neighbors artifact of a given table int64 [n, k]; distances are 0, 1, 2, ...; config: more of its fields."""
    folder.mkdir(parents=True)
    parts = np.array_split(table.astype(np.int64), shards)
    for s, part in enumerate(parts):
        np.save(folder / f"ids-{s:05d}.npy", part)
        distances = np.where(part >= 0, np.arange(part.shape[1]), np.inf).astype(np.float32)
        np.save(folder / f"distances-{s:05d}.npy", distances)
    config = {"keep": int(table.shape[1]), **config}
    names = [(f"{s:05d}", len(part)) for s, part in enumerate(parts)]
    return write_artifact(folder, "neighbors", config, {"queries": queries, "database": database}, names)
