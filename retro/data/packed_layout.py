"""Where the chunks and documents of a packed stream lie in its sequences: the arithmetic of packing, without tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retro.data.packed_stream import PackedStream


@dataclass(frozen=True)
class PackedLayout:
    """P pieces, in order: the part of each chunk that lies in one of B sequences of N positions. Flat positions count
    through all sequences: b N + p.

    All int64 [P] unless said otherwise. sequence: b; chunk: its id; skip: tokens of the chunk that the sequence before
    has; begin: flat position of the piece; length: its tokens, 1..M; span: tokens from the piece's begin to the end of
    the document, in this sequence and later ones; document: its number; document_begin: flat position of the first
    token of the document in the sequence. padding: int64 [B], flat positions from which on the sequences hold padding;
    is_full: whether none does.
    """

    sequence: np.ndarray
    chunk: np.ndarray
    skip: np.ndarray
    begin: np.ndarray
    length: np.ndarray
    span: np.ndarray
    document: np.ndarray
    document_begin: np.ndarray
    padding: np.ndarray
    is_full: bool

    def documents(self) -> np.ndarray:
        """int64 [B, W]: numbers of the documents of each sequence; the last one is repeated where there are fewer."""
        first = np.flatnonzero(self.begin == self.document_begin)
        sequence = self.sequence[first]
        counts = np.bincount(sequence, minlength=len(self.padding))
        places = np.minimum(np.arange(int(counts.max(initial=1))), counts[:, None] - 1)
        return np.asarray(self.document[first][np.cumsum(counts)[:, None] - counts[:, None] + places])


def lay_out(stream: PackedStream, sample_ids: np.ndarray, length: int) -> PackedLayout:
    """Layout of the sequences int64 [B] of `length` positions, each of which holds at least one token."""
    chunks, count = stream.chunks, len(sample_ids)
    first_token = sample_ids * length
    stop = np.minimum(first_token + length, stream.num_tokens)
    ids, starts = stream.locate(np.concatenate([first_token, stop - 1]))
    counts = ids[count:] - ids[:count] + 1
    sequence = np.repeat(np.arange(count), counts)
    before = np.cumsum(counts) - counts  # pieces of the sequences before
    chunk = np.arange(len(sequence)) + (ids[:count] - before)[sequence]
    span = chunks.spans(chunk)
    lengths = np.minimum(span, chunks.chunk_length)
    # Positions of the chunks, counted from the first token of the first chunk of each sequence.
    ends = np.cumsum(lengths)
    own = ends - lengths
    own -= own[before][sequence]
    own += (starts[:count] - first_token)[sequence]
    skip = np.maximum(-own, 0)
    begin = own + skip
    piece = np.minimum(own + lengths, (stop - first_token)[sequence]) - begin
    there = piece > 0
    if not there.all():  # removed chunks have no tokens
        sequence, chunk, span, skip, begin, piece = (
            array[there] for array in (sequence, chunk, span, skip, begin, piece)
        )
    document = chunks.documents(chunk)
    begin = begin + sequence * length
    new = np.ones(len(chunk), dtype=bool)
    new[1:] = (document[1:] != document[:-1]) | (sequence[1:] != sequence[:-1])
    return PackedLayout(
        sequence=sequence,
        chunk=chunk,
        skip=skip,
        begin=begin,
        length=piece,
        span=span - skip,
        document=document,
        document_begin=np.maximum.accumulate(np.where(new, begin, 0)),
        padding=np.arange(count) * length + stop - first_token,
        is_full=bool((stop - first_token == length).all()),
    )
