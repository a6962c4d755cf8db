"""MinHash signatures of word shingles, many documents at once (Broder 1997; near-duplicate control of RETRO, 2.1)."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice

import numpy as np

from retro.config.prep import DeduplicateConfig

_WORD = re.compile(r"\w+")
# Words of a long text at a time; characters of short ones together, about as many words: with the hash values of one
# permutation the shingles stay in the processor's cache.
_BATCH = 1 << 15
_LONG = 6 * _BATCH
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
    """Hashes of texts' word n-grams. Keeps the hashes of words seen, so use one per process."""

    _REMEMBERED = 1 << 18

    def __init__(self, shingle_words: int) -> None:
        self.shingle_words = shingle_words
        self._words: dict[str, int] = {}

    def shingles(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """One hash per n-gram of words: (hashes uint64 [s], number of the text int64 [s]), those of a text together.

        A text without words has none. One with fewer words than n is one shingle of all its words, so it resembles only
        texts of the same words in the same order.
        """
        words = [words_of(text) for text in texts]
        lengths = np.array([len(found) for found in words], dtype=np.int64)
        hashes = self._hash_words([word for found in words for word in found])
        begins = np.cumsum(lengths) - lengths
        found, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        widths = np.minimum(lengths, self.shingle_words)
        for width in np.unique(widths[widths > 0]).tolist():
            rows = np.flatnonzero(widths == width)
            counts = lengths[rows] - width + 1
            starts = np.repeat(begins[rows] - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
            found.append(self._mix(hashes, starts, width))
            owners.append(np.repeat(rows, counts))
        return np.concatenate(found), np.concatenate(owners)

    def long_text(self, text: str) -> Iterator[np.ndarray]:
        """The same hashes of one text, uint64 [s] at a time, without a list of all its words."""
        kept = np.zeros(0, np.uint64)
        told = False
        words = (match[0] for match in _WORD.finditer(text.casefold()))
        while block := list(islice(words, _BATCH)):
            hashes = np.concatenate([kept, self._hash_words(block)])
            count = len(hashes) - self.shingle_words + 1
            if count > 0:
                told = True
                yield self._mix(hashes, np.arange(count), self.shingle_words)
            kept = hashes[max(0, count) :]
        if not told and len(kept):
            yield self._mix(kept, np.zeros(1, np.int64), len(kept))

    def _mix(self, hashes: np.ndarray, starts: np.ndarray, width: int) -> np.ndarray:
        """Hash of the `width` words from each start on."""
        mixed = np.full(len(starts), np.uint64(width))
        for offset in range(width):  # a polynomial in the word hashes modulo 2^64, with a mix between the terms
            mixed = (mixed ^ (mixed >> np.uint64(29))) * _MULTIPLIER + hashes[starts + offset]
        mixed = (mixed ^ (mixed >> np.uint64(32))) * _MULTIPLIER
        return mixed ^ (mixed >> np.uint64(29))

    def _hash_words(self, words: list[str]) -> np.ndarray:
        known = self._words
        if len(known) > self._REMEMBERED:
            known.clear()
        for word in set(words).difference(known):
            known[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        return np.fromiter(map(known.__getitem__, words), dtype=np.uint64, count=len(words))


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
        waiting: list[int] = []
        held = 0
        for row, text in enumerate(texts):
            if len(text) > _LONG:
                for hashes in self._shingler.long_text(text):
                    self._lower(out, hashes, np.full(len(hashes), row))
                continue
            if held + len(text) > _LONG:
                self._sign(texts, waiting, out)
                waiting, held = [], 0
            waiting.append(row)
            held += len(text)
        self._sign(texts, waiting, out)
        return out

    def signature(self, text: str) -> np.ndarray:
        """The signature of one text."""
        return self.signatures([text])[0]

    def _sign(self, texts: Sequence[str], rows: list[int], out: np.ndarray) -> None:
        hashes, owners = self._shingler.shingles([texts[row] for row in rows])
        self._lower(out, hashes, np.array(rows, dtype=np.int64)[owners])

    def _lower(self, out: np.ndarray, shingles: np.ndarray, rows: np.ndarray) -> None:
        """Lower the rows of `out` by the minima over their shingles; those of one row stand together."""
        if not len(shingles):
            return
        starts = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
        minima = np.empty((len(starts), self.config.permutations), dtype=np.uint32)
        hashed = np.empty_like(shingles)
        upper = hashed.view(np.uint32)[1::2] if sys.byteorder == "little" else hashed.view(np.uint32)[::2]
        for i, (a, b) in enumerate(zip(*self._hashes, strict=True)):
            np.multiply(shingles, a, out=hashed)
            np.add(hashed, b, out=hashed)
            minima[:, i] = np.minimum.reduceat(upper, starts)
        own = rows[starts]
        out[own] = np.minimum(out[own], minima)


def matches(signatures: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Number int64 [n] of equal values in the rows of two arrays of signatures [n, p].

    Divided by p it estimates the Jaccard similarity of the two texts' shingle sets.
    """
    equal: np.ndarray = np.count_nonzero(signatures == others, axis=1)
    return equal
