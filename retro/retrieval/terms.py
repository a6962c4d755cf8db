"""From texts or token ids to terms, and from terms to counts: the analysis shared by BM25 and the lexical embedder.

A term is a 64-bit hash. Words are lower-cased; identifiers count whole (`torch.nn.cross_entropy`) and in their parts,
split at underscores, dots and changes of case (`torch nn cross entropy`). Terms of length n are n adjacent parts.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Sequence

import numpy as np

_WORD = re.compile(r"\w+(?:\.\w+)*")
_PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_SEPARATOR = re.compile(r"[._]+")

_U64 = np.uint64
# Words whose analysis is kept, and parts of words whose hash is: enough for those that come again and again, and full
# early, so that memory does not go on growing with the corpus.
_WORDS_KEPT, _PARTS_KEPT = 1 << 16, 1 << 12


@dataclasses.dataclass(frozen=True)
class TermCounts:
    """Term counts of n rows in compressed-row form; the terms of a row ascend by hash, so any order of work gives them.

    offsets int64 [n+1]; hashes uint64 [nnz]; counts float32 [nnz].
    """

    offsets: np.ndarray
    hashes: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: np.ndarray) -> TermCounts:
        """Some of the rows, in the order asked for."""
        lengths = np.diff(self.offsets)[rows]
        entries = ragged_arange(self.offsets[rows], lengths)
        return TermCounts(np.concatenate([[0], np.cumsum(lengths)]), self.hashes[entries], self.counts[entries])

    def where(self, keep: np.ndarray) -> TermCounts:
        """Only the entries where `keep` (bool [nnz])."""
        kept = np.concatenate([[0], np.cumsum(keep)])
        return TermCounts(kept[self.offsets], self.hashes[keep], self.counts[keep])

    @property
    def rows(self) -> np.ndarray:
        """Row of each entry: int64 [nnz]."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.offsets))


def word_terms(texts: Sequence[str], max_ngram: int = 1) -> TermCounts:
    """Counts of the words (1-grams) up to `max_ngram`-grams of each text."""
    ids: dict[str, int] = {}
    flat: list[int] = []
    lengths = np.empty(len(texts), dtype=np.int64)
    for row, text in enumerate(texts):
        words = _WORD.findall(text)
        lengths[row] = len(words)
        flat.extend([ids.setdefault(word, len(ids)) for word in words])
    row_of_word = np.repeat(np.arange(len(texts), dtype=np.int64), lengths)
    word = np.asarray(flat, dtype=np.int64)

    analysed = [_analyse_word(w) for w in ids]
    num_parts = np.array([len(parts) for parts, _ in analysed], dtype=np.int64)
    part_hashes = np.array([h for parts, _ in analysed for h in parts], dtype=_U64)
    whole_hashes = np.array([whole for _, whole in analysed], dtype=_U64)
    first_part = np.concatenate([[0], np.cumsum(num_parts)])[:-1] if len(num_parts) else np.zeros(0, np.int64)

    rows = np.repeat(row_of_word, num_parts[word]) if len(word) else np.zeros(0, np.int64)
    parts = part_hashes[ragged_arange(first_part[word], num_parts[word])] if len(word) else np.zeros(0, _U64)
    compound = num_parts[word] > 1 if len(word) else np.zeros(0, bool)
    extra_rows, extra = row_of_word[compound], whole_hashes[word[compound]]
    return _count(len(texts), rows, parts, max_ngram, extra_rows, extra)


def token_terms(token_rows: Sequence[np.ndarray], max_ngram: int = 1) -> TermCounts:
    """Counts of the token ids (1-grams) up to `max_ngram`-grams of each row; special tokens must be gone already."""
    lengths = np.array([len(row) for row in token_rows], dtype=np.int64)
    rows = np.repeat(np.arange(len(token_rows), dtype=np.int64), lengths)
    tokens = np.concatenate([np.asarray(row, dtype=np.int64) for row in token_rows]) if len(rows) else np.zeros(0, _U64)
    none = np.zeros(0, dtype=np.int64)
    return _count(len(token_rows), rows, _mix(tokens.astype(_U64)), max_ngram, none, none.astype(_U64))


def ragged_arange(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenation of arange(start, start + length): int64 [sum of lengths]."""
    total = int(lengths.sum())
    ends = np.cumsum(lengths)
    return np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)


def hash_with_seed(hashes: np.ndarray, seed: int) -> np.ndarray:
    """An independent uint64 hash of each uint64 hash for every seed."""
    return _mix(hashes ^ _mix(np.array([seed], dtype=_U64)))


def _count(
    n: int, rows: np.ndarray, sequence: np.ndarray, max_ngram: int, extra_rows: np.ndarray, extra: np.ndarray
) -> TermCounts:
    """Counts of the 1..max_ngram-grams of `sequence` (row by row) and of the extra terms."""
    all_rows, all_terms = [rows, extra_rows], [sequence, extra]
    grams = sequence
    for length in range(2, max_ngram + 1):
        # grams[i] covers sequence[i : i + length - 1]; extend it by one where the row goes on
        size = max(len(sequence) - length + 1, 0)
        grams = _mix(grams[:size] * _U64(0x9E3779B97F4A7C15) + sequence[length - 1 :])
        inside = rows[:size] == rows[length - 1 :]
        all_rows.append(rows[:size][inside])
        all_terms.append(grams[inside])
    row, term = np.concatenate(all_rows), np.concatenate(all_terms)
    order = np.lexsort((term, row))
    row, term = row[order], term[order]
    new = np.ones(len(row), dtype=bool)
    new[1:] = (row[1:] != row[:-1]) | (term[1:] != term[:-1])
    first = np.flatnonzero(new)
    counts = np.diff(np.append(first, len(row))).astype(np.float32)
    offsets = np.searchsorted(row[first], np.arange(n + 1)).astype(np.int64)
    return TermCounts(offsets, term[first], counts)


@functools.lru_cache(maxsize=_WORDS_KEPT)
def _analyse_word(word: str) -> tuple[tuple[int, ...], int]:
    """(hashes of the parts, hash of the whole) of one match of _WORD; underscores alone have no parts."""
    if word.isascii():
        parts = [part.lower() for part in _PART.findall(word)]
    else:  # case changes mean little in other scripts: split at separators only
        parts = [part.lower() for part in _SEPARATOR.split(word) if part]
    return tuple(_hash_text(part) for part in parts), _hash_text(word.lower())


@functools.lru_cache(maxsize=_PARTS_KEPT)
def _hash_text(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: a bijection of uint64 that spreads every bit."""
    x = x + _U64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> _U64(27))) * _U64(0x94D049BB133111EB)
    return x ^ (x >> _U64(31))
