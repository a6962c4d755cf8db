"""From chunks to what embedders and BM25 read: token rows without special tokens, and their text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retro.artifacts.manifest import input_path, open_manifest

if TYPE_CHECKING:
    from retro.data.chunk_store import ChunkStore
    from retro.data.tokenizer import Tokenizer

CHUNKS_KIND = "chunks"


def chunk_token_rows(store: ChunkStore, ids: np.ndarray) -> list[np.ndarray]:
    """Tokens of each chunk, int64 [length], special tokens included."""
    tokens, mask = store.gather(ids, pad_id=0)
    lengths = mask.sum(axis=-1)
    return np.split(tokens[mask].astype(np.int64), np.cumsum(lengths)[:-1]) if len(lengths) else []


def special_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Ids of the special tokens: int64, ascending."""
    ids = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    return np.array(sorted(i for i in ids if i is not None and i >= 0), dtype=np.int64)


def strip_specials(token_rows: Sequence[np.ndarray], specials: np.ndarray) -> list[np.ndarray]:
    """The rows without special tokens."""
    if len(token_rows) == 0:
        return []
    lengths = np.array([len(row) for row in token_rows])
    flat = np.concatenate([np.asarray(row, dtype=np.int64) for row in token_rows])
    keep = ~np.isin(flat, specials)
    row = np.repeat(np.arange(len(lengths)), lengths)
    kept = np.bincount(row[keep], minlength=len(lengths))
    return np.split(flat[keep], np.cumsum(kept)[:-1])


def decode_rows(tokenizer: Tokenizer, token_rows: Sequence[np.ndarray]) -> list[str]:
    """Text of each row without its special tokens. Rows cut inside a character decode to a replacement character."""
    return tokenizer.decode_batch(strip_specials(token_rows, special_ids(tokenizer)))


def open_chunk_tokenizer(chunks: str | Path) -> Tokenizer:
    """The tokenizer that the tokens of a chunks artifact were made with, found through the manifests."""
    from retro.data.tokenizer import open_tokenizer

    chunks = Path(chunks)
    tokens = input_path(chunks, open_manifest(chunks, CHUNKS_KIND), "tokens")
    return open_tokenizer(input_path(tokens, open_manifest(tokens), "tokenizer"))
