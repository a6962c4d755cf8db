"""Grouping by length."""

from hypothesis import given
from hypothesis import strategies as st

from retro.inference.prompt_batches import batch_by_length


def test_similar_lengths_go_together_within_the_limit():
    assert batch_by_length([], []) == []
    assert batch_by_length([8, 3, 7, 4], [0] * 4, most=100) == [[0, 2, 3], [1]]  # 3 < 8 / 2
    assert batch_by_length([8, 8, 8], [0] * 3, most=16) == [[0, 1], [2]]
    assert batch_by_length([8, 8, 8], [0, 8, 4], most=24) == [[1], [2, 0]]
    assert batch_by_length([50], [50], most=10) == [[0]]


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 200)), max_size=30), st.integers(1, 500))
def test_each_sequence_once_and_no_group_beyond_the_limit(sizes, most):
    lengths, extra = [a for a, _ in sizes], [b for _, b in sizes]
    groups = batch_by_length(lengths, extra, most)
    assert sorted(i for group in groups for i in group) == list(range(len(sizes)))
    for group in groups:
        longest = max(lengths[i] for i in group)
        assert len(group) == 1 or len(group) * (longest + max(extra[i] for i in group)) <= most
        assert all(2 * lengths[i] >= longest for i in group)
