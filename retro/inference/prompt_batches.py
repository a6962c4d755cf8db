"""Which sequences go through the model together when their prompts are read."""

from __future__ import annotations

from collections.abc import Sequence

#: Most tokens, padding and neighbors included, of one pass over prompts: bounds its memory. More make no pass faster.
PASS_TOKENS = 16384
#: A sequence shorter than this part of the longest one of its pass goes into another.
_SHORTEST_PART = 0.5


def batch_by_length(
    lengths: Sequence[int], extra: Sequence[int], most: int = PASS_TOKENS, rows: int | None = None
) -> list[list[int]]:
    """Indices in groups that are padded to one length each, longest first.

    lengths: tokens of each sequence; extra: those of its neighbors; most: of padded sequences and neighbors in one
    group, but for a single sequence that has more by itself; rows: sequences of a group, None = any number.
    """
    groups: list[list[int]] = []
    longest = widest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], -extra[i], i)):
        if groups:
            size = len(groups[-1]) + 1
            fits = size * (longest + max(widest, extra[index])) <= most and (rows is None or size <= rows)
            if fits and lengths[index] >= _SHORTEST_PART * longest:
                groups[-1].append(index)
                widest = max(widest, extra[index])
                continue
        groups.append([index])
        longest, widest = lengths[index], extra[index]
    return groups
