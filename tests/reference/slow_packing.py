"""Packing written down token by token: python lists and loops, no arithmetic on positions that could be wrong twice.

It shares nothing with `retro.data`. A document is its list of tokens, begin and end included; a removed one is empty,
and has chunks all the same (their numbers stay).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Place:
    """One position of the stream: a token, and what it is of."""

    document: int
    offset: int
    token: int
    #: The next token of the document; None after the last.
    target: int | None


@dataclass
class Sequence:
    """One sequence; rows in the order of their chunks. Padding: token, target and document are None."""

    tokens: list[int | None] = field(default_factory=list)
    targets: list[int | None] = field(default_factory=list)
    scored: list[bool] = field(default_factory=list)
    documents: list[int | None] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    #: (chunk id, position of its last token).
    rows: list[tuple[int, int]] = field(default_factory=list)


def chunk_numbers(counts: list[int]) -> list[list[int]]:
    """Chunk ids of each document, which has so many."""
    numbers, out = iter(range(sum(counts))), []
    for count in counts:
        out.append([next(numbers) for _ in range(count)])
    return out


def pack(
    documents: list[list[int]], chunks: list[list[int]], chunk_length: int, length: int, score_last: bool
) -> list[Sequence]:
    """All sequences of `length` tokens. documents in the order of use; chunks: ids of each document's chunks."""
    stream = [
        Place(number, offset, token, tokens[offset + 1] if offset + 1 < len(tokens) else None)
        for number, tokens in enumerate(documents)
        for offset, token in enumerate(tokens)
    ]
    sequences = []
    while stream:
        part, stream = stream[:length], stream[length:]
        sequence = Sequence()
        for position in range(length):
            place = part[position] if position < len(part) else None
            before = sequence.documents[-1] if position else -1
            sequence.tokens.append(None if place is None else place.token)
            sequence.targets.append(None if place is None else place.target)
            sequence.documents.append(None if place is None else place.document)
            same = position > 0 and before == sequence.documents[-1]
            sequence.starts.append(sequence.starts[-1] if same else position)
            is_scored = place is not None and place.target is not None and (score_last or position < length - 1)
            sequence.scored.append(is_scored)
            if is_scored and place is not None and place.offset % chunk_length == chunk_length - 1:
                sequence.rows.append((chunks[place.document][place.offset // chunk_length], position))
        sequences.append(sequence)
    return sequences
