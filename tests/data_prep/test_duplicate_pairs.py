"""Candidate pairs of buckets, and the greedy choice, against the obvious loops."""

import itertools
import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_prep.duplicate_pairs import BUCKETED, DROPPED, PAIR, CandidatePairs, choose_dropped


def cut(array, sizes):
    """The array in blocks of these sizes, over and over; empty ones as well."""
    start = 0
    for size in itertools.cycle(sizes):
        if start >= len(array):
            return
        yield array[start : start + size]
        start += size


@given(
    sizes=st.lists(st.integers(1, 9), max_size=8),
    blocks=st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any),
    limit=st.integers(1, 6),
)
def test_pairs_of_the_first_members_of_each_bucket(sizes, blocks, limit):
    records = np.zeros(sum(sizes), dtype=BUCKETED)
    records["hash"] = np.repeat(np.arange(len(sizes)) * 7, sizes)
    records["number"] = np.arange(len(records))
    pairs = CandidatePairs(cut(records, blocks), limit)
    found = sorted((int(a), int(b)) for one, two in pairs for a, b in zip(one["number"], two["number"], strict=True))
    expected, start = [], 0
    for size in sizes:
        members = range(start, start + size)
        expected += [(a, b) for a, b in itertools.combinations(members, 2) if a - start < limit]
        start += size
    assert found == sorted(expected)
    assert pairs.count.shared == sum(size > 1 for size in sizes)
    assert pairs.count.larger == sum(size > limit + 1 for size in sizes)
    assert pairs.count.largest == max(sizes, default=0)


def greedy(pairs):
    """Document by document in the order of survival."""
    gone = {}
    for number, group in itertools.groupby(pairs.tolist(), key=lambda pair: pair[1]):
        for _, _, distance, _, other in group:
            if other not in gone:
                gone[number] = (other, distance)
                break
    return gone


@given(
    seed=st.integers(0, 10_000),
    documents=st.integers(2, 40),
    density=st.floats(0.01, 0.6),
    blocks=st.lists(st.integers(0, 30), min_size=1, max_size=4).filter(any),
)
def test_the_greedy_choice_in_blocks(seed, documents, density, blocks):
    draw = random.Random(seed)
    order = list(range(documents))
    draw.shuffle(order)  # numbers are not in the order of survival
    rows = []
    for later in range(documents):
        for earlier in range(later):
            if draw.random() < density:
                # Found in several bands: the same pair more than once.
                row = (later * 10, order[later], draw.randrange(4), earlier * 10, order[earlier])
                rows += [row] * draw.randrange(1, 3)
    pairs = np.sort(np.array(rows, dtype=PAIR), order=PAIR.names)
    dropped = np.concatenate([*choose_dropped(cut(pairs, blocks), documents), np.zeros(0, dtype=DROPPED)])
    found = {int(row[0]): (int(row[1]), int(row[2])) for row in dropped.tolist()}
    assert len(found) == len(dropped) and found == greedy(pairs)


def test_a_long_chain_of_resemblance():
    count = 3000
    pairs = np.zeros(count - 1, dtype=PAIR)
    pairs["precedence"] = pairs["number"] = np.arange(1, count)
    pairs["other_precedence"] = pairs["other"] = np.arange(count - 1)
    dropped = np.concatenate(list(choose_dropped([pairs], count)))
    assert dropped["number"].tolist() == list(range(1, count, 2))
