"""Passages of chunks that were found: each with its surroundings in the document, no chunk twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from retro.config.qa_prepare import QaPassagesConfig
from retro.data.chunk_store import ChunkStore
from retro.data.document import document_key
from retro.data.qa.record import Passage
from retro.data.tokenizer import Tokenizer
from retro.retrieval.chunk_text import decode_rows

# What is left of a character that a chunk's border cuts.
_EDGES = " \t\r\n\ufffd"
# Tokens read on either side of a window: as long as a word may be.
_CONTEXT = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """Chunks first..last of one document, found by `chunk` with a score (larger is better, NaN = not found)."""

    first: int
    last: int
    chunk: int
    score: float

    @property
    def chunks(self) -> int:
        """How many they are."""
        return self.last - self.first + 1


def choose_windows(
    chunks: Sequence[int],
    scores: Sequence[float],
    bounds: Sequence[tuple[int, int]],
    config: QaPassagesConfig,
    most: int | None = None,
) -> list[Window]:
    """Windows of chunks that were found, best first; at most `most` (None: all).

    bounds: first and last chunk of each one's document. Each chunk brings its surroundings along (`surroundings`), less
    what a better window has already; a chunk that stands in one brings nothing. What lies beside a better window of the
    document is added to it where both have room in `max_chunks`.
    """
    windows: list[Window] = []
    owner: dict[int, int] = {}  # chunk -> its window
    for chunk, score, (lowest, highest) in zip(chunks, scores, bounds, strict=True):
        if chunk in owner:
            continue
        lower, upper = surroundings(chunk, lowest, highest, config.before, config.after)
        first = last = chunk
        while first > lower and first - 1 not in owner:
            first -= 1
        while last < upper and last + 1 not in owner:
            last += 1
        beside = [owner[c] for c in (first - 1, last + 1) if lowest <= c <= highest and c in owner]
        room = [i for i in beside if windows[i].chunks + last - first + 1 <= config.most_chunks]
        if room:
            number = min(room)
            old = windows[number]
            windows[number] = dataclasses.replace(old, first=min(old.first, first), last=max(old.last, last))
        elif most is not None and len(windows) == most:
            break
        else:
            number = len(windows)
            windows.append(Window(first, last, chunk, score))
        owner.update(dict.fromkeys(range(first, last + 1), number))
    return windows


def surroundings(chunk: int, lowest: int, highest: int, before: int, after: int) -> tuple[int, int]:
    """First and last of before + 1 + after chunks around one; at an end of the document (lowest..highest) the other
    side gives as many more as it has."""
    first = max(lowest, min(chunk - before, highest - before - after))
    return first, min(highest, first + before + after)


class PassageMaker:
    """Windows and passages of one database."""

    def __init__(self, database: ChunkStore, tokenizer: Tokenizer, config: QaPassagesConfig) -> None:
        self.database, self.tokenizer, self.config = database, tokenizer, config

    def windows(self, ids: np.ndarray, distances: np.ndarray, most: int | None = None) -> list[Window]:
        """`choose_windows` of one query's neighbors: ids int64 [k], -1 = none, and distances float32 [k]."""
        real = ids >= 0
        scores = [-float(distance) for distance in distances[real]]
        return choose_windows(ids[real].tolist(), scores, self.bounds(ids[real]), self.config, most)

    def document_windows(self, documents: Sequence[str], windows: Sequence[Window]) -> list[Window]:
        """Windows that cover the documents of these ids, as far as the database has them: those of `windows` that lie
        in them in their order, then the rest of each document from its beginning."""
        keys = np.array([document_key(document) for document in dict.fromkeys(documents)], dtype=np.uint64)
        starts = self.database.find(keys, np.zeros(len(keys), dtype=np.int64))
        bounds = self.bounds(starts[starts >= 0])
        found: list[Window] = []
        for first, last in bounds:
            found += [window for window in windows if first <= window.first <= last]
        found.sort(key=windows.index)
        rest: list[Window] = []
        for first, last in bounds:
            free = [c for c in range(first, last + 1) if not any(w.first <= c <= w.last for w in found)]
            rest += _tiles(free, self.config.window)
        return [*found, *rest]

    def texts(self, windows: Sequence[Window]) -> list[str]:
        """Text of each window, with the whole of a word that its border cuts."""
        length = self.database.chunk_length
        # What stands around is read too, to see where words begin and end.
        read = [
            (max(window.first - 1, lowest), min(window.last + 1, highest))
            for window, (lowest, highest) in zip(windows, self.bounds(_firsts(windows)), strict=True)
        ]
        rows: list[np.ndarray] = [np.zeros(0, np.int64)] * (3 * len(windows))
        for size in {last - first for first, last in read}:
            group = [i for i, (first, last) in enumerate(read) if last - first == size]
            ids = np.array([read[i][0] for i in group], dtype=np.int64)
            tokens, mask = self.database.gather_neighbors(ids, self.tokenizer.pad_id, (size + 1) * length)
            for i, own, real in zip(group, tokens.astype(np.int64), mask.sum(axis=1).tolist(), strict=True):
                start = (windows[i].first - read[i][0]) * length
                stop = min(start + windows[i].chunks * length, real)
                begin = max(start - _CONTEXT, 0)
                context = own[begin : min(stop + _CONTEXT, real)]
                rows[3 * i : 3 * i + 3] = [context[: start - begin], context[: stop - begin], context]
        decoded = iter(decode_rows(self.tokenizer, rows))
        return [_whole_words(*parts) for parts in zip(decoded, decoded, decoded, strict=True)]

    def passages(self, windows: Sequence[Window], texts: Sequence[str]) -> tuple[Passage, ...]:
        """The windows with their texts, titles and documents; `chunk` is the first of a window."""
        if not windows:
            return ()
        documents = self.database.documents(_firsts(windows))
        records = [self.database.tokens.document_record(int(document)) for document in documents]
        return tuple(
            Passage(record["title"], text, record["id"], window.first, window.score)
            for window, text, record in zip(windows, texts, records, strict=True)
        )

    def bounds(self, ids: np.ndarray) -> list[tuple[int, int]]:
        """First and last chunk of each chunk's document: ids int64 [n]."""
        length, store = self.database.chunk_length, self.database
        begun = np.asarray(store.starts(ids) - store.tokens.document_offsets[store.documents(ids)])
        first = ids - begun // length
        last = ids - 1 - (-store.spans(ids) // length)
        return list(zip(first.tolist(), last.tolist(), strict=True))


def _firsts(windows: Sequence[Window]) -> np.ndarray:
    return np.array([window.first for window in windows], dtype=np.int64)


def _whole_words(before: str, until: str, context: str) -> str:
    """The part of `context` from the end of `before` to the end of `until`, both beginnings of it, and the rest of the
    words that these cut."""
    start, stop = len(before), len(until)
    if context.startswith(until) and until.startswith(before):
        while 0 < start < len(context) and context[start - 1].isalnum() and context[start].isalnum():
            start -= 1
        while 0 < stop < len(context) and context[stop - 1].isalnum() and context[stop].isalnum():
            stop += 1
    return context[start:stop].strip(_EDGES)


def _tiles(chunks: Sequence[int], size: int) -> list[Window]:
    """Windows of at most `size` adjacent chunks that cover the ascending `chunks`."""
    tiles: list[Window] = []
    for chunk in chunks:
        if tiles and tiles[-1].last == chunk - 1 and tiles[-1].chunks < size:
            tiles[-1] = dataclasses.replace(tiles[-1], last=chunk)
        else:
            tiles.append(Window(chunk, chunk, chunk, float("nan")))
    return tiles
