"""BM25 scores of a few given chunks: they are looked up in the lists of the query's terms, which are not read whole.

The work is terms x candidates x log(length of a list), whatever the size of the database; adding up all lists, as a
search does, is less work in a small one only.
"""

from __future__ import annotations

import numpy as np

from retro.retrieval.terms import TermCounts, ragged_arange

# (term, candidate) pairs looked up at a time: their arrays stay in the second level of cache.
_PAIRS = 1 << 15
# A step of a lookup takes about as long as adding up so many entries of lists. Decides the way, not the scores.
_STEP = 4


def lookup_is_less(queries: TermCounts, lengths: np.ndarray, candidates: np.ndarray, chunks: int) -> np.ndarray:
    """bool [n]: whether looking up a query's candidates is less work than adding up the lists of its terms.

    lengths: int64 [nnz] of the list of each term; candidates: int64 [n] of each query; chunks: that the lists are over.
    """
    steps = np.ceil(np.log2(np.maximum(lengths, 1))) + 2
    rows = queries.rows
    added = np.bincount(rows, weights=lengths, minlength=len(queries)) + chunks // 4
    looked_up = np.bincount(rows, weights=steps * candidates[rows], minlength=len(queries)) * _STEP
    return np.asarray(looked_up < added)


def candidate_scores(
    queries: TermCounts,
    lists: tuple[np.ndarray, np.ndarray],
    chunks: np.ndarray,
    weights: np.ndarray,
    offsets: np.ndarray,
    candidates: np.ndarray,
) -> np.ndarray:
    """Scores float32 [p] of candidates [p], those of query i at offsets[i] .. offsets[i + 1] (int64 [n + 1]).

    lists: (starts, stops) [nnz] of the list of each of the queries' terms in chunks int32 (ascending in each list) and
    weights float32. Terms are added in their order, as when whole lists are added up.
    """
    starts, stops = lists
    out = np.zeros(len(candidates), dtype=np.float32)
    number = np.diff(offsets)[queries.rows]  # candidates of each term's query
    first = offsets[:-1][queries.rows]
    ends = np.concatenate([[0], np.cumsum(number)])
    begin = 0
    while begin < len(number):
        # The terms of one query must be added in order: blocks follow each other, and so do terms in a block.
        end = max(begin + 1, int(np.searchsorted(ends, ends[begin] + _PAIRS, side="right")) - 1)
        term = np.repeat(np.arange(begin, end), number[begin:end])
        place = ragged_arange(first[begin:end], number[begin:end])
        found = find_in_lists(chunks, starts[term], stops[term], candidates[place].astype(np.int32))
        hit = np.flatnonzero(found >= 0)
        np.add.at(out, place[hit], weights[found[hit]] * queries.counts[term[hit]])
        begin = end
    return out


def find_in_lists(values: np.ndarray, starts: np.ndarray, stops: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Place of each wanted int32 [p] in values[start:stop] (ascending, without repeats, not empty), -1 = not there.

    values: int32, fewer than 2^31.
    """
    # Bisection of all pairs at once, in arrays of 4 bytes; no list has an entry >= wanted before `base`.
    base, size = starts.astype(np.int32), (stops - starts).astype(np.int32)
    for _ in range(int(size.max(initial=1) - 1).bit_length()):
        half = size >> 1
        # Where one entry is left, half is 0: whatever is compared there (wrapped, as it may lie before the first list),
        # base stays.
        base += half * (values.take(base + half - 1, mode="wrap") < wanted)
        size -= half
    return np.where(values.take(base) == wanted, base, -1)
