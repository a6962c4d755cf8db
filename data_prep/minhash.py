"""MinHash signatures of word shingles, many documents at once (Broder 1997; near-duplicate control of RETRO, 2.1)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from retro.config.prep import DeduplicateConfig

_WORD = re.compile(r"\w+")
# Shingles hashed at once: with the hash values of one permutation they stay in the processor's cache.
_BATCH = 1 << 15
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
# The minimum over nothing: the signature of a text without words.
EMPTY = np.uint32(0xFFFFFFFF)


def normalise(text: str) -> str:
    """Text by which exact duplicates are told: case folded, white space collapsed."""
    return " ".join(text.casefold().split())


def text_digest(text: str) -> bytes:
    """16 bytes that are equal for two texts if and only if they are exact duplicates: BLAKE2b of `normalise(text)`."""
    return hashlib.blake2b(normalise(text).encode("utf-8"), digest_size=16).digest()


def words_of(text: str) -> list[str]:
    """Words by which near duplicates are told: runs of letters, digits and underscores, case folded."""
    return _WORD.findall(text.casefold())


class Shingler:
    """Hashes of a text's word n-grams. Keeps the hashes of words seen, so use one per process."""

    _REMEMBERED = 1 << 18

    def __init__(self, shingle_words: int) -> None:
        self.shingle_words = shingle_words
        self._words: dict[str, int] = {}

    def shingles(self, text: str) -> np.ndarray:
        """uint64 [n]: one hash per n-gram of the text's words, in order; empty for a text without words.

        A text with fewer words than n is one shingle of all its words, so it resembles only texts of the same words
        in the same order.
        """
        words = words_of(text)
        if not words:
            return np.zeros(0, dtype=np.uint64)
        hashes = self._hash_words(words)
        width = min(self.shingle_words, len(words))
        count = len(words) - width + 1
        mixed = np.full(count, np.uint64(width))
        for offset in range(width):  # a polynomial in the word hashes modulo 2^64, with a mix between the terms
            mixed = (mixed ^ (mixed >> np.uint64(29))) * _MULTIPLIER + hashes[offset : offset + count]
        mixed = (mixed ^ (mixed >> np.uint64(32))) * _MULTIPLIER
        return mixed ^ (mixed >> np.uint64(29))

    def _hash_words(self, words: list[str]) -> np.ndarray:
        known = self._words
        if len(known) > self._REMEMBERED:
            known.clear()
        for word in set(words).difference(known):
            known[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        return np.fromiter((known[word] for word in words), dtype=np.uint64, count=len(words))


class Signatures:
    """MinHash signatures, uint32 [permutations] each: a pure function of text and options.

    Entry i is the minimum over the shingles x of the upper 32 bits of (a_i x + b_i) mod 2^64 with a_i odd
    (multiply-shift hashing, Dietzfelbinger et al. 1997), over shingle hashes that are well mixed themselves.
    """

    def __init__(self, config: DeduplicateConfig) -> None:
        self.config = config
        self._shingler = Shingler(config.shingle_words)

    @cached_property
    def _hashes(self) -> tuple[np.ndarray, np.ndarray]:
        """(a, b) uint64 [permutations] each."""
        # From a named hash, not from a library's generator, whose stream may change: signatures are stored.
        count = self.config.permutations
        stream = hashlib.shake_256(f"retro minhash {self.config.seed}".encode()).digest(16 * count)
        drawn = np.frombuffer(stream, dtype="<u8").astype(np.uint64)
        return drawn[:count] | np.uint64(1), drawn[count:]

    def signatures(self, texts: Sequence[str]) -> np.ndarray:
        """uint32 [texts, permutations]; all EMPTY for a text without words."""
        out = np.full((len(texts), self.config.permutations), EMPTY)
        waiting: list[tuple[int, np.ndarray]] = []
        held = 0
        for row, text in enumerate(texts):
            shingles = self._shingler.shingles(text)
            for start in range(0, len(shingles), _BATCH):
                part = shingles[start : start + _BATCH]
                if held + len(part) > _BATCH:
                    self._reduce(waiting, out)
                    waiting, held = [], 0
                waiting.append((row, part))
                held += len(part)
        self._reduce(waiting, out)
        return out

    def signature(self, text: str) -> np.ndarray:
        """The signature of one text."""
        return self.signatures([text])[0]

    def _reduce(self, parts: list[tuple[int, np.ndarray]], out: np.ndarray) -> None:
        """Lower the rows of `out` by the minima over these shingles; a row has at most one part here."""
        if not parts:
            return
        rows = np.array([row for row, _ in parts])
        starts = np.cumsum([0] + [len(part) for _, part in parts[:-1]])
        shingles = np.concatenate([part for _, part in parts])
        minima = np.empty((len(rows), self.config.permutations), dtype=np.uint32)
        hashed = np.empty_like(shingles)
        upper = hashed.view("<u4")[1::2] if hashed.dtype.isnative and np.little_endian else None
        for i, (a, b) in enumerate(zip(*self._hashes, strict=True)):
            np.multiply(shingles, a, out=hashed)
            np.add(hashed, b, out=hashed)
            values = upper if upper is not None else (hashed >> np.uint64(32)).astype(np.uint32)
            minima[:, i] = np.minimum.reduceat(values, starts)
        out[rows] = np.minimum(out[rows], minima)


def matches(signatures: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Number int64 [n] of equal values in the rows of two arrays of signatures [n, p].

    Divided by p it estimates the Jaccard similarity of the two texts' shingle sets.
    """
    equal: np.ndarray = np.count_nonzero(signatures == others, axis=1)
    return equal
