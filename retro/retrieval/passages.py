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

    bounds: first and last chunk of each one's document. Each chunk brings `before` and `after` chunks along, less what
    a better window has already; a chunk that stands in one brings nothing. What lies beside a better window of the
    document is added to it where both have room in `max_chunks`.
    """
    windows: list[Window] = []
    owner: dict[int, int] = {}  # chunk -> its window
    for chunk, score, (lowest, highest) in zip(chunks, scores, bounds, strict=True):
        if chunk in owner:
            continue
        first = last = chunk
        while first > max(lowest, chunk - config.before) and first - 1 not in owner:
            first -= 1
        while last < min(highest, chunk + config.after) and last + 1 not in owner:
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
        """Text of each window, without what a border leaves of a character."""
        length = self.database.chunk_length
        rows: list[np.ndarray] = [np.zeros(0, np.int64)] * len(windows)
        for size in {window.chunks for window in windows}:
            places = [i for i, window in enumerate(windows) if window.chunks == size]
            ids = np.array([windows[i].first for i in places], dtype=np.int64)
            tokens, mask = self.database.gather_neighbors(ids, self.tokenizer.pad_id, size * length)
            for i, row, real in zip(places, tokens, mask, strict=True):
                rows[i] = row[real].astype(np.int64)
        return [text.strip(_EDGES) for text in decode_rows(self.tokenizer, rows)]

    def passages(self, windows: Sequence[Window], texts: Sequence[str]) -> tuple[Passage, ...]:
        """The windows with their texts, titles and documents; `chunk` is the first of a window."""
        if not windows:
            return ()
        documents = self.database.documents(np.array([window.first for window in windows], dtype=np.int64))
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


def _tiles(chunks: Sequence[int], size: int) -> list[Window]:
    """Windows of at most `size` adjacent chunks that cover the ascending `chunks`."""
    tiles: list[Window] = []
    for chunk in chunks:
        if tiles and tiles[-1].last == chunk - 1 and tiles[-1].chunks < size:
            tiles[-1] = dataclasses.replace(tiles[-1], last=chunk)
        else:
            tiles.append(Window(chunk, chunk, chunk, float("nan")))
    return tiles
