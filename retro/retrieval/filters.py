"""Dropping neighbors: those of excluded documents, and compacting what remains to the front."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Exclusions:
    """Documents that must not be retrieved, by group of query rows.

    group_of_row int64 [n]: the group of each query row; groups int64 [e] and keys uint64 [e]: pairs (group, document
    key) in any order, repeats allowed. The rows of one sequence form a group: all its documents are excluded for each
    of its chunks (Borgeaud et al. 2022, section 2.1).
    """

    group_of_row: np.ndarray
    groups: np.ndarray
    keys: np.ndarray

    @staticmethod
    def none(rows: int) -> Exclusions:
        """Nothing is excluded for `rows` query rows."""
        return Exclusions(np.zeros(rows, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint64))

    @staticmethod
    def same_for_all(rows: int, keys: np.ndarray) -> Exclusions:
        """The same document keys [e] are excluded for each of `rows` query rows."""
        keys = np.asarray(keys, dtype=np.uint64).ravel()
        return Exclusions(np.zeros(rows, np.int64), np.zeros(len(keys), np.int64), keys)

    def take(self, rows: np.ndarray) -> Exclusions:
        """The exclusions of some of the rows."""
        return Exclusions(self.group_of_row[rows], self.groups, self.keys)

    def mask(self, candidate_keys: np.ndarray) -> np.ndarray:
        """bool [n, c]: True where the document key of a row's candidate (uint64 [n, c]) is excluded for that row."""
        if len(self.keys) == 0:
            return np.zeros(candidate_keys.shape, dtype=bool)
        # (group, key) pairs as single integers: rank of the key among the excluded ones + group * number of ranks.
        unique, rank = np.unique(self.keys, return_inverse=True)
        pairs = np.unique(self.groups.astype(np.int64) * len(unique) + rank)
        place = np.searchsorted(unique, candidate_keys)
        place[place == len(unique)] = 0
        pair = self.group_of_row[:, None].astype(np.int64) * len(unique) + place
        where = np.searchsorted(pairs, pair)
        where[where == len(pairs)] = 0
        return (unique[place] == candidate_keys) & (pairs[where] == pair)


@dataclasses.dataclass(frozen=True)
class OwnKeys:
    """Each row excludes one key: that of its own document (or group). keys: uint64 [n]."""

    keys: np.ndarray

    def take(self, rows: np.ndarray) -> OwnKeys:
        """Those of some of the rows."""
        return OwnKeys(self.keys[rows])

    def mask(self, candidate_keys: np.ndarray) -> np.ndarray:
        """bool [n, c]: True where a candidate's key (uint64 [n, c]) is the row's own."""
        return np.asarray(candidate_keys == self.keys[:, None])


def compact(
    ids: np.ndarray, distances: np.ndarray, keep: np.ndarray, width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Entries [n, c] where `keep`, in their order at the front of [n, width]; the rest is -1 and inf."""
    n, c = ids.shape
    width = c if width is None else width
    out_ids = np.full((n, width), -1, dtype=np.int64)
    out_distances = np.full((n, width), np.inf, dtype=np.float32)
    place = np.cumsum(keep, axis=1) - 1
    rows, columns = np.nonzero(keep & (place < width))
    out_ids[rows, place[rows, columns]] = ids[rows, columns]
    out_distances[rows, place[rows, columns]] = distances[rows, columns]
    return out_ids, out_distances
