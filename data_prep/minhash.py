"""MinHash signatures of word shingles, hashed in bulk (Broder 1997; near-duplicate control of RETRO, section 2.1)."""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from typing import Any

import numpy as np

from retro.config.prep import DeduplicateConfig

_WORD = re.compile(r"\w+")
_BATCH = 4096  # shingles x permutations held at once: 2 MiB at 128 permutations, whatever the document's length
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def normalise(text: str) -> str:
    """Text by which exact duplicates are told: case folded, white space collapsed."""
    return " ".join(text.casefold().split())


def words_of(text: str) -> list[str]:
    """Words by which near duplicates are told: runs of letters, digits and underscores, case folded."""
    return _WORD.findall(text.casefold())


class Shingler:
    """Hashes of a text's word n-grams. Keeps the hashes of words seen, so use one per process."""

    _REMEMBERED = 1 << 20

    def __init__(self, shingle_words: int) -> None:
        self.shingle_words = shingle_words
        self._words: dict[str, int] = {}

    def shingles(self, text: str) -> np.ndarray:
        """uint32 [n]: one hash per distinct n-gram of the text's words; empty for a text without words.

        A text with fewer words than n is one shingle of all its words, so it resembles only texts of the same words
        in the same order.
        """
        words = words_of(text)
        if not words:
            return np.zeros(0, dtype=np.uint32)
        hashes = self._hash_words(words)
        width = min(self.shingle_words, len(words))
        count = len(words) - width + 1
        mixed = np.full(count, np.uint64(width))
        for offset in range(width):  # a polynomial in the word hashes modulo 2^64, with a mix between the terms
            mixed = (mixed ^ (mixed >> np.uint64(29))) * _MULTIPLIER + hashes[offset : offset + count]
        mixed = (mixed ^ (mixed >> np.uint64(32))) * _MULTIPLIER
        return np.unique((mixed >> np.uint64(32)).astype(np.uint32))

    def _hash_words(self, words: list[str]) -> np.ndarray:
        known = self._words
        if len(known) > self._REMEMBERED:
            known.clear()
        for word in set(words).difference(known):
            known[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        return np.fromiter((known[word] for word in words), dtype=np.uint64, count=len(words))


class Signatures:
    """MinHash signatures through `datasketch`, uint32 [permutations] each: a pure function of text and options."""

    def __init__(self, config: DeduplicateConfig) -> None:
        self.config = config
        self._shingler = Shingler(config.shingle_words)

    @cached_property
    def _empty(self) -> Any:
        from datasketch import MinHash

        # Values arrive hashed; "affine32" is the scheme of 32-bit hashes, named because signatures are stored.
        return MinHash(self.config.permutations, seed=self.config.seed, hashfunc=int, scheme="affine32")

    def signature(self, text: str) -> np.ndarray | None:
        """The signature of a text; None for a text without words."""
        shingles = self._shingler.shingles(text)
        if not len(shingles):
            return None
        sketch = self._empty.copy()
        for start in range(0, len(shingles), _BATCH):
            sketch.update_batch(shingles[start : start + _BATCH].tolist())
        return np.asarray(sketch.hashvalues, dtype=np.uint32)

    def sketch(self, signature: np.ndarray) -> Any:
        """datasketch's object of a stored signature, for its LSH index."""
        from datasketch import MinHash

        return MinHash(
            seed=self.config.seed,
            hashfunc=int,
            hashvalues=signature,
            permutations=self._empty.permutations,
            scheme="affine32",
        )


def similarities(signature: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity float64 [n] of one signature [p] with others [n, p]: the share of equal values."""
    return (others == signature).mean(axis=1)
