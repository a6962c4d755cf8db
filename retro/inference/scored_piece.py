"""What of a text goes through the model at once while it is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retro.config.errors import ConfigError


@dataclass(frozen=True)
class ScoredPiece:
    """tokens: what the model reads, of which the first chunk has `first` (1..M) and the others M each; targets: what is
    scored, predicted by the positions from `begin` on."""

    tokens: tuple[int, ...]
    first: int
    begin: int
    targets: tuple[int, ...]

    def chunk_ends(self, chunk_length: int) -> range:
        """Positions of the last tokens of its complete chunks."""
        return range(self.first - 1, len(self.tokens), chunk_length)


def continuation_pieces(
    context: Sequence[int], continuation: Sequence[int], chunk_length: int, limit: int, first: int | None = None
) -> list[ScoredPiece]:
    """Pieces that score a continuation after a context of at least one token, each token once.

    limit: most tokens that the model sees, M + 1 at least; first: tokens of the first chunk, None = the context ends a
    chunk. The last token of a piece is not read. What does not fit goes on in a further piece, for which the oldest
    chunks are dropped whole, so that chunk borders stay where they are. Raises ValueError and ConfigError.
    """
    if not context:
        raise ValueError("tokens: expected at least one token of prompt, found none")
    if limit <= chunk_length:
        raise ConfigError(f"sequence_length: expected more than one chunk of {chunk_length} tokens, found {limit}")
    size = (len(context) - 1) % chunk_length + 1 if first is None else first
    if not 1 <= size <= chunk_length:
        raise ValueError(f"first_chunk: expected 1..{chunk_length}, found {first}")
    pieces: list[ScoredPiece] = []
    tokens, done = list(context), 0
    while done < len(continuation):
        while len(tokens) > limit:
            del tokens[:size]
            size = chunk_length
        part = continuation[done : done + limit - len(tokens) + 1]
        pieces.append(ScoredPiece((*tokens, *part[:-1]), size, len(tokens) - 1, tuple(part)))
        tokens += part
        done += len(part)
    return pieces


def rolling_pieces(tokens: Sequence[int], chunk_length: int, window_length: int) -> list[ScoredPiece]:
    """Pieces of whole chunks that do not overlap, as in pretraining: every token but the first is scored once, and
    chunks are counted from the begin."""
    length = window_length // chunk_length * chunk_length
    pieces = []
    for start in range(0, len(tokens) - 1, length):
        targets = tuple(tokens[start + 1 : start + 1 + length])
        pieces.append(ScoredPiece(tuple(tokens[start : start + len(targets)]), chunk_length, 0, targets))
    return pieces
