"""Which documents a tokenizer is trained on: a seeded sample of whole documents, found shard by shard.

The sample are the documents of the lowest ranks (hash of seed and id) whose texts reach so many characters. Each shard
notes its own candidates - rank and place, no text - and the closing step takes the best of all and reads their texts.
So the sample depends neither on the order nor on the sharding of the corpus, memory is that of the sample, and an
artifact holds no text that a removal of documents would have to find.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from retro.config.errors import ArtifactCorruptError, ConfigError
from retro.config.prep_tokens import SentencePieceConfig
from retro.data.document import Document, document_key, read_documents

# key: of the document; characters: of its text, at most the sample's; file: number among the document files of the
# artifact; document: number in the file, from 0.
CANDIDATE = np.dtype([("rank", "<u8"), ("key", "<u8"), ("characters", "<i8"), ("file", "<i8"), ("document", "<i8")])
_BATCH = 1 << 14


def find_candidates(documents: Iterable[tuple[int, int, Document]], config: SentencePieceConfig) -> np.ndarray:
    """CANDIDATE [n] by rank, of `documents` (file, number in it, document): no other can be in the sample."""
    best = np.zeros(0, CANDIDATE)
    batch: list[tuple[int, int, int, int, int]] = []
    for file, number, document in documents:
        if document.split not in config.splits or not document.text:
            continue
        characters = min(len(document.text), config.max_characters)
        batch.append((sample_rank(config.seed, document.id), document_key(document.id), characters, file, number))
        if len(batch) == _BATCH:
            best, batch = keep_best([best, np.array(batch, CANDIDATE)], config.max_characters), []
    return keep_best([best, np.array(batch, CANDIDATE)], config.max_characters)


def keep_best(candidates: Iterable[np.ndarray], max_characters: int) -> np.ndarray:
    """The candidates CANDIDATE [n] of the lowest ranks that together reach `max_characters`, by rank (then by key)."""
    joined = np.concatenate([np.zeros(0, CANDIDATE), *candidates])
    joined = joined[np.lexsort((joined["key"], joined["rank"]))]
    before = np.cumsum(joined["characters"]) - joined["characters"]
    return np.asarray(joined[before < max_characters])


def read_sample(files: list[Path], chosen: np.ndarray, max_characters: int) -> list[str]:
    """Texts of the chosen documents CANDIDATE [n], by rank, the last one cut so that they have `max_characters`.

    files: of the documents artifact; each is read at most once, as far as its last chosen document.
    """
    texts = [""] * len(chosen)
    wanted: dict[int, dict[int, int]] = {}
    for place, (file, number) in enumerate(zip(chosen["file"].tolist(), chosen["document"].tolist(), strict=True)):
        wanted.setdefault(file, {})[number] = place
    for file in sorted(wanted):
        for number, document in _until(files[file], max(wanted[file])):
            if number not in wanted[file]:
                continue
            place = wanted[file][number]
            if document_key(document.id) != int(chosen["key"][place]):
                raise ArtifactCorruptError(f"{files[file]}: not the documents that were sampled; ingest again")
            texts[place] = document.text[:max_characters]
    if texts:
        texts[-1] = texts[-1][: len(texts[-1]) - max(0, sum(map(len, texts)) - max_characters)]
    return texts


def check_any(chosen: np.ndarray, config: SentencePieceConfig) -> None:
    """Raise ConfigError if nothing was chosen."""
    if not len(chosen):
        raise ConfigError(f"the corpus has no document of the splits {', '.join(config.splits)} to train on")


def sample_rank(seed: int, document_id: str) -> int:
    """Rank of a document in the sample, as a uint64: blake2b over seed and id."""
    digest = hashlib.blake2b(f"{seed}\0{document_id}".encode(), digest_size=8, person=b"retro-sample").digest()
    return int.from_bytes(digest, "little")


def _until(path: Path, last: int) -> Iterator[tuple[int, Document]]:
    for number, document in enumerate(read_documents(path)):
        yield number, document
        if number == last:
            return
