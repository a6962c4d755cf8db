"""Texts of an encoder's tokens in batches of similar length: little padding, and none computed where lengths agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from retro.retrieval.terms import ragged_arange


@dataclass(frozen=True)
class TokenRows:
    """n texts as an encoder's tokens, one after the other.

    ids int64 [t]; special bool [t]: added by the tokenizer (CLS, SEP, ...); lengths int64 [n].
    """

    ids: np.ndarray
    special: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class Batch:
    """Rows that go through the encoder together, padded on the right.

    rows int64 [b]; ids int64 [b, w]; present bool [b, w]: not padding; special bool [b, w], False in padding.
    """

    rows: np.ndarray
    ids: np.ndarray
    present: np.ndarray
    special: np.ndarray


def token_rows(ids: Sequence[Sequence[int]], special: Sequence[Sequence[int]]) -> TokenRows:
    """Of one list of ids and one of 0 and 1 (special) per text."""
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    flat = np.fromiter((i for row in ids for i in row), np.int64, int(lengths.sum()))
    marks = np.fromiter((i for row in special for i in row), bool, int(lengths.sum()))
    return TokenRows(flat, marks, lengths)


def batch_rows(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Rows in groups of similar length, each of at most `batch_tokens` tokens when padded to its longest.

    A function of the lengths alone. lengths int64 [n] -> int64 [b] per group, shortest first. A longer row is alone.
    """
    order = np.argsort(lengths, kind="stable")
    groups: list[np.ndarray] = []
    start = 0
    for stop in range(1, len(order) + 1):
        if stop == len(order) or (stop - start + 1) * lengths[order[stop]] > batch_tokens:
            groups.append(order[start:stop])
            start = stop
    return groups


def length_batches(texts: TokenRows, batch_tokens: int, pad_id: int) -> Iterator[Batch]:
    """The batches of `batch_rows`."""
    starts = np.cumsum(texts.lengths) - texts.lengths
    for rows in batch_rows(texts.lengths, batch_tokens):
        lengths = texts.lengths[rows]
        entries = ragged_arange(starts[rows], lengths)
        present = np.arange(int(lengths.max())) < lengths[:, None]
        ids = np.full(present.shape, pad_id, dtype=np.int64)
        special = np.zeros(present.shape, dtype=bool)
        ids[present], special[present] = texts.ids[entries], texts.special[entries]
        yield Batch(rows, ids, present, special)
