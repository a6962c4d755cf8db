"""From documents sorted into buckets to the ones that are dropped: candidate pairs, and a greedy choice among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

# A document in one bucket of one band; sorted, a bucket is a run of equal hashes in the order of survival.
BUCKETED = np.dtype([("hash", "<u8"), ("precedence", "<u8"), ("number", "<u8")])
# Two documents that resemble each other, told of the later one: sorted, the nearest comes first, of equally near ones
# the first in the order of survival. distance: values in which the signatures differ.
PAIR = np.dtype(
    [
        ("precedence", "<u8"),
        ("number", "<u8"),
        ("distance", "<u4"),
        ("other_precedence", "<u8"),
        ("other", "<u8"),
    ]
)
# A document that is dropped, and the one that is kept for it. near: 0 = exact duplicate.
DROPPED = np.dtype([("number", "<u8"), ("kept", "<u8"), ("distance", "<u4"), ("near", "u1")])


@dataclass
class BucketCount:
    """Buckets of more than one document, and those of more than are all compared with each other."""

    shared: int = 0
    larger: int = 0
    largest: int = 0


@dataclass
class CandidatePairs:
    """Iterates over the pairs of documents that share a bucket: (earlier, later), BUCKETED [n] each.

    blocks: sorted records, in blocks of any size. Of every bucket the first `limit` are paired with all that follow
    them, so that a bucket of m documents gives at most m x limit pairs. `count` tells of the buckets seen.
    """

    blocks: Iterable[np.ndarray]
    limit: int
    count: BucketCount = field(default_factory=BucketCount)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        front = np.zeros(0, dtype=BUCKETED)  # the first ones of the bucket that goes on in the next block
        seen = 0  # documents of it so far
        for block in self.blocks:
            if not len(block):
                continue
            if len(front) and front["hash"][0] != block["hash"][0]:
                self._tell(np.array([seen]))
                front, seen = front[:0], 0
            rows = np.concatenate([front, block])
            begins = np.flatnonzero(np.concatenate([[True], rows["hash"][1:] != rows["hash"][:-1]]))
            sizes = np.diff(np.append(begins, len(rows)))
            start = np.repeat(begins, sizes)
            place = np.arange(len(rows)) - start
            fresh = np.arange(len(rows)) >= len(front)
            for step in range(min(self.limit, int(sizes.max()))):
                # The pairs of each bucket's member number `step` with those after it.
                later = np.flatnonzero(fresh & (place > step))
                if not len(later):
                    break
                yield rows[start[later] + step], rows[later]
            carried = seen - len(front) if len(front) else 0  # documents of the first bucket that are not in `rows`
            sizes[0] += carried
            self._tell(sizes[:-1])
            seen = int(sizes[-1])
            front = rows[begins[-1] :][: self.limit].copy()
        if seen:
            self._tell(np.array([seen]))

    def _tell(self, sizes: np.ndarray) -> None:
        self.count.shared += int((sizes > 1).sum())
        # The last one of a bucket of limit + 1 is still compared with all before it.
        self.count.larger += int((sizes > self.limit + 1).sum())
        self.count.largest = max(self.count.largest, int(sizes.max(initial=0)))


class DroppedBits:
    """One bit per document: whether it is dropped."""

    def __init__(self, documents: int) -> None:
        self._bits = np.zeros(documents // 8 + 1, dtype=np.uint8)

    def add(self, numbers: np.ndarray) -> None:
        """Mark documents uint64 [n]."""
        np.bitwise_or.at(self._bits, (numbers >> np.uint64(3)).astype(np.int64), self._masks(numbers))

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        """bool [n] for documents uint64 [n]."""
        found: np.ndarray = (self._bits[(numbers >> np.uint64(3)).astype(np.int64)] & self._masks(numbers)) > 0
        return found

    def _masks(self, numbers: np.ndarray) -> np.ndarray:
        return np.left_shift(np.uint8(1), (numbers & np.uint64(7)).astype(np.uint8))


def choose_dropped(blocks: Iterable[np.ndarray], documents: int) -> Iterator[np.ndarray]:
    """DROPPED [n] of the documents that resemble one which is kept, each with the nearest such one.

    blocks: PAIR records, sorted, in blocks of any size. Documents are taken in the order of survival and dropped if
    they resemble an earlier one that is kept. Memory: a block and one bit per document.
    """
    gone = DroppedBits(documents)
    for pairs in _whole_documents(blocks):
        begins = np.flatnonzero(np.concatenate([[True], pairs["number"][1:] != pairs["number"][:-1]]))
        own = np.repeat(np.arange(len(begins)), np.diff(np.append(begins, len(pairs))))
        fallen = _settle(pairs, begins, own, gone)
        gone.add(pairs["number"][begins][fallen])
        # Of the pairs of each fallen document the first with a kept one: the nearest.
        good = np.flatnonzero(fallen[own] & ~gone[pairs["other"]])
        first = good[np.unique(own[good], return_index=True)[1]]
        dropped = np.empty(len(first), dtype=DROPPED)
        dropped["number"], dropped["kept"] = pairs["number"][first], pairs["other"][first]
        dropped["distance"], dropped["near"] = pairs["distance"][first], 1
        yield dropped


def _settle(pairs: np.ndarray, begins: np.ndarray, own: np.ndarray, gone: DroppedBits) -> np.ndarray:
    """bool per document of this block: whether it falls.

    A document falls when one that it resembles is known to be kept, and stays when all of them are known to fall. A
    pair looks back only, so every round settles something; because the order is that of a hash, few rounds do.
    """
    numbers = pairs["number"][begins]
    by_number = np.argsort(numbers, kind="stable")
    place = np.searchsorted(numbers[by_number], pairs["other"])
    place = by_number[np.minimum(place, len(numbers) - 1)]
    inside = numbers[place] == pairs["other"]  # the other one is decided in this block as well
    settled = np.zeros(len(numbers), dtype=bool)
    falls = np.zeros(len(numbers), dtype=bool)
    before = gone[pairs["other"]]
    open_pairs = np.arange(len(pairs))
    while len(open_pairs):
        others, mine = place[open_pairs], own[open_pairs]
        known = ~inside[open_pairs] | settled[others]
        other_falls = np.where(inside[open_pairs], falls[others], before[open_pairs])
        hit = known & ~other_falls
        falls[mine[hit]] = True
        settled[mine[hit]] = True
        waiting = np.zeros(len(numbers), dtype=bool)
        waiting[mine[~known]] = True
        stays = np.unique(mine)
        stays = stays[~waiting[stays] & ~settled[stays]]
        settled[stays] = True
        open_pairs = open_pairs[~settled[mine]]
    return falls


def _whole_documents(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same records cut between documents only."""
    rest = np.zeros(0, dtype=PAIR)
    for block in blocks:
        pairs = np.concatenate([rest, block])
        others = np.flatnonzero(pairs["number"] != pairs["number"][-1:])
        cut = int(others[-1]) + 1 if len(others) else 0
        rest = pairs[cut:].copy()
        if cut:
            yield pairs[:cut]
    if len(rest):
        yield rest
