"""A lexical embedder without any download: tf-idf weighted word n-grams, hashed, randomly projected, L2 normalised.

Each term is projected to a few coordinates with random signs, both drawn by hashing the term (a sparse random
projection, Kane and Nelson 2014), so that no projection matrix is stored and unseen terms need no special care.

The idf is counted on at most `fit_chunks` chunks. Only these are detokenised and analysed twice, once to fit and once
to embed. To keep their terms instead would take 650 bytes per chunk of 64 tokens, two thirds of what its vector takes,
to save 20 of some 50 microseconds; beyond `fit_chunks` there is nothing to save.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from retro.config.errors import ArtifactCorruptError
from retro.config.loader import from_dict
from retro.config.prep_embed import LexicalConfig
from retro.retrieval.terms import TermCounts, hash_with_seed, word_terms

IDF_NAME = "idf.npy"
_BLOCK = 4096
# Of hashes to buckets; different from the projection's seeds, which follow the user's.
_BUCKET_SEED = 1 << 40


class LexicalEmbedder:
    """See the module. `idf` float32 [buckets] is fitted on the database by `fit_idf` and part of the identity."""

    version = 1

    def __init__(self, config: LexicalConfig, idf: np.ndarray) -> None:
        self.config = config
        self.idf = np.ascontiguousarray(idf, dtype=np.float32)
        if self.idf.shape != (config.buckets,):
            raise ArtifactCorruptError(f"idf: expected {config.buckets} values, found shape {idf.shape}")
        self._idf_sha256 = hashlib.sha256(self.idf.tobytes()).hexdigest()

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return self.config.dimension

    @property
    def metric(self) -> Literal["l2", "ip"]:
        """Squared L2 distance; of unit vectors it is 2 - 2 cos."""
        return "l2"

    def identity(self) -> dict[str, Any]:
        """Version of this code, the options and the hash of the fitted idf."""
        c = self.config
        return {
            "kind": "lexical",
            "version": self.version,
            "dimension": c.dimension,
            "max_ngram": c.max_ngram,
            "buckets": c.buckets,
            "signs": c.signs,
            "seed": c.seed,
            "idf_sha256": self._idf_sha256,
        }

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, dimension] of unit length; zero for a text without words. Independent of batching."""
        out = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for start in range(0, len(texts), _BLOCK):
            block = texts[start : start + _BLOCK]
            out[start : start + len(block)] = self._embed_block(word_terms(block, self.config.max_ngram))
        return out

    def embed_blocks(self, blocks: Iterable[Sequence[str]]) -> Iterator[np.ndarray]:
        """`embed` of each block, in order."""
        return (self.embed(block) for block in blocks)

    def _embed_block(self, terms: TermCounts) -> np.ndarray:
        from scipy.sparse import csr_array

        unique, column = np.unique(terms.hashes, return_inverse=True)
        weights = (1.0 + np.log(terms.counts)) * self.idf[_buckets(terms.hashes, self.config.buckets)]
        shape = (len(terms), len(unique))
        counts = csr_array((weights.astype(np.float32), column.astype(np.int64), terms.offsets), shape=shape)
        signs = self.config.signs
        places = np.empty((len(unique), signs), dtype=np.int64)
        values = np.empty((len(unique), signs), dtype=np.float32)
        for i in range(signs):
            drawn = hash_with_seed(unique, self.config.seed * signs + i)
            places[:, i] = (drawn >> np.uint64(1)) % np.uint64(self.dimension)
            values[:, i] = np.where(drawn & np.uint64(1), 1.0, -1.0)
        offsets = np.arange(len(unique) + 1, dtype=np.int64) * signs
        projection = csr_array((values.ravel(), places.ravel(), offsets), shape=(len(unique), self.dimension))
        projection.sum_duplicates()
        vectors = (counts @ projection).toarray()
        norms = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
        return (vectors / np.where(norms > 0, norms, 1.0)).astype(np.float32)


def fit_idf(text_blocks: Iterable[Sequence[str]], config: LexicalConfig) -> np.ndarray:
    """Smoothed inverse document frequency ln((1 + n) / (1 + df)) + 1 per hash bucket: float32 [buckets].

    A chunk counts once for a bucket, whatever number of its terms fall there.
    """
    return idf_of_counts(*count_documents(text_blocks, config), config)


def count_documents(text_blocks: Iterable[Sequence[str]], config: LexicalConfig) -> tuple[np.ndarray, int]:
    """(number of texts with a term in the bucket: int64 [buckets], number of texts)."""
    frequency = np.zeros(config.buckets, dtype=np.int64)
    texts = 0
    for block in text_blocks:
        terms = word_terms(block, config.max_ngram)
        pairs = np.unique(terms.rows * config.buckets + _buckets(terms.hashes, config.buckets))
        frequency += np.bincount(pairs % config.buckets, minlength=config.buckets)
        texts += len(block)
    return frequency, texts


def idf_of_counts(frequency: np.ndarray, texts: int, config: LexicalConfig) -> np.ndarray:
    """The idf of `fit_idf` from counts (which may be sums over shards)."""
    return (np.log((1.0 + texts) / (1.0 + frequency)) + 1.0).astype(np.float32)


def open_lexical(folder: Path, options: dict[str, Any]) -> LexicalEmbedder:
    """The embedder of an artifact folder."""
    try:
        idf = np.load(folder / IDF_NAME, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactCorruptError(f"{folder / IDF_NAME}: not readable ({error}); make the embedder again") from None
    return LexicalEmbedder(from_dict(LexicalConfig, options, str(folder)), idf)


def _buckets(hashes: np.ndarray, buckets: int) -> np.ndarray:
    return (hash_with_seed(hashes, _BUCKET_SEED) % np.uint64(buckets)).astype(np.int64)
