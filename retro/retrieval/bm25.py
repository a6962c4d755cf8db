"""BM25 as a retriever in its own right, over sparse term-by-chunk matrices that are searched by memory map.

score(q, d) = sum over terms t of  qtf(t) idf(t) tf (k1 + 1) / (tf + k1 (1 - b + b |d| / average |d|)),
idf(t) = ln(1 + (N - df + 1/2) / (df + 1/2))  (Robertson and Zaragoza 2009, with the non-negative idf).

On disk, per segment of chunks: terms uint64 [V] ascending hashes, offsets int32 [V+1], chunks int32 [nnz] (ascending in
each term, relative to the segment), counts uint16 [nnz], lengths int32 [n]; weights float32 [nnz] are the summands
above without qtf. Over all segments: vocabulary uint64 and document_frequency int64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retro.artifacts.manifest import input_path, open_manifest
from retro.config.errors import ArtifactCorruptError
from retro.config.loader import from_dict
from retro.config.prep_index import Bm25Config
from retro.retrieval.candidate_scores import candidate_scores, lookup_is_less
from retro.retrieval.chunk_text import CHUNKS_KIND, decode_rows, open_chunk_tokenizer, special_ids, strip_specials
from retro.retrieval.terms import TermCounts, token_terms, word_terms
from retro.retrieval.top_k import top_k

if TYPE_CHECKING:
    from retro.data.tokenizer import Tokenizer

VOCABULARY = "vocabulary.npy"
DOCUMENT_FREQUENCY = "document_frequency.npy"
_COUNT_LIMIT = np.iinfo(np.uint16).max


def query_terms(token_rows: Sequence[np.ndarray], tokenizer: Tokenizer, config: Bm25Config) -> TermCounts:
    """Term counts of chunks or queries: the one analysis for both."""
    if config.terms == "tokens":
        return token_terms(strip_specials(token_rows, special_ids(tokenizer)), config.max_ngram)
    return word_terms(decode_rows(tokenizer, token_rows), config.max_ngram)


def segment_arrays(blocks: Sequence[TermCounts]) -> dict[str, np.ndarray]:
    """The files of one segment but for its weights, from the term counts of its chunks in blocks."""
    sizes = [len(block) for block in blocks]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    hashes = np.concatenate([block.hashes for block in blocks])
    chunks = np.concatenate([block.rows + start for block, start in zip(blocks, starts[:-1], strict=True)])
    counts = np.minimum(np.concatenate([block.counts for block in blocks]), _COUNT_LIMIT).astype(np.uint16)
    lengths = np.concatenate([_row_sums(block) for block in blocks]).astype(np.int32)
    # Entries come chunk by chunk: a stable sort by term leaves the chunks of each term ascending.
    order = np.argsort(hashes, kind="stable")
    terms, first = np.unique(hashes[order], return_index=True)
    return {
        "terms": terms,
        "offsets": np.append(first, len(hashes)).astype(np.int32),
        "chunks": chunks[order].astype(np.int32),
        "counts": counts[order],
        "lengths": lengths,
    }


def without_chunks(arrays: dict[str, np.ndarray], removed: np.ndarray) -> dict[str, np.ndarray]:
    """The files of a segment without the postings of the chunks where `removed` (bool [n]).

    The same arrays as of a segment in which those chunks had no term: what is left tells nothing of them.
    """
    keep = ~removed[arrays["chunks"]]
    kept = np.concatenate([[0], np.cumsum(keep)])[arrays["offsets"]]
    present = np.diff(kept) > 0
    return {
        "terms": arrays["terms"][present],
        "offsets": np.append(kept[:-1][present], kept[-1]).astype(np.int32),
        "chunks": arrays["chunks"][keep],
        "counts": arrays["counts"][keep],
        "lengths": np.where(removed, 0, arrays["lengths"]).astype(np.int32),
    }


def merge_vocabulary(segments: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(vocabulary uint64, document_frequency int64) over the (terms, offsets) of all segments."""
    terms = np.concatenate([terms for terms, _ in segments])
    frequency = np.concatenate([np.diff(offsets) for _, offsets in segments]).astype(np.int64)
    vocabulary, place = np.unique(terms, return_inverse=True)
    merged = np.zeros(len(vocabulary), dtype=np.int64)
    np.add.at(merged, place, frequency)
    return vocabulary, merged


def segment_weights(
    arrays: dict[str, np.ndarray],
    vocabulary: np.ndarray,
    document_frequency: np.ndarray,
    num_chunks: int,
    average_length: float,
    config: Bm25Config,
) -> np.ndarray:
    """float32 [nnz]: what each posting adds to a score per occurrence of its term in the query."""
    frequency = document_frequency[np.searchsorted(vocabulary, arrays["terms"])].astype(np.float64)
    idf = np.log1p((num_chunks - frequency + 0.5) / (frequency + 0.5))
    norm = config.k1 * (1.0 - config.b + config.b * arrays["lengths"] / max(average_length, 1e-9))
    count = arrays["counts"].astype(np.float64)
    saturated = count * (config.k1 + 1.0) / (count + norm[arrays["chunks"]])
    return (np.repeat(idf, np.diff(arrays["offsets"])) * saturated).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _Segment:
    start: int  # chunk id of its first chunk
    size: int
    terms: np.ndarray
    offsets: np.ndarray
    chunks: np.ndarray
    weights: np.ndarray

    def lists(self, queries: TermCounts) -> tuple[TermCounts, np.ndarray, np.ndarray]:
        """(the terms that the segment has, starts [nnz] and stops [nnz] of their postings)."""
        place = np.minimum(np.searchsorted(self.terms, queries.hashes), len(self.terms) - 1)
        hit = self.terms[place] == queries.hashes
        known, place = queries.where(hit), place[hit]
        return known, self.offsets[place], self.offsets[place + 1]

    def scores(self, queries: TermCounts) -> Iterator[np.ndarray]:
        """Scores of all chunks of the segment for each query: float32 [size].

        The postings of a query's terms are copied one after the other into a sparse matrix of a column per term, and
        its product with the term counts is a dense row: several times faster than a product of sparse matrices, whose
        rows would be half full. Terms ascend, so the sums do not depend on batching.
        """
        from scipy.sparse import csc_array

        known, starts, stops = self.lists(queries)
        ends = np.concatenate([[0], np.cumsum(stops - starts)])
        sizes = ends[known.offsets]
        # One buffer for all queries: fresh memory of megabytes per query costs more to map than to fill.
        longest = int(np.diff(sizes).max(initial=0))
        chunks, weights = np.empty(longest, np.int32), np.empty(longest, np.float32)
        for i in range(len(known)):
            first, last = known.offsets[i], known.offsets[i + 1]
            size = sizes[i + 1] - sizes[i]
            if size == 0:
                yield np.zeros(self.size, dtype=np.float32)
                continue
            pieces = list(zip(starts[first:last].tolist(), stops[first:last].tolist(), strict=True))
            np.concatenate([self.chunks[a:b] for a, b in pieces], out=chunks[:size])
            np.concatenate([self.weights[a:b] for a, b in pieces], out=weights[:size])
            columns = (ends[first : last + 1] - ends[first]).astype(np.int32)
            matrix = csc_array((weights[:size], chunks[:size], columns), shape=(self.size, last - first), copy=False)
            yield matrix @ known.counts[first:last]

    def score(self, queries: TermCounts, ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Scores float32 [p] of the chunks of the segment in ids int64 [n, c] where `wanted`, row by row."""
        known, starts, stops = self.lists(queries)
        number = wanted.sum(axis=1)
        few = lookup_is_less(known, (stops - starts).astype(np.int64), number, self.size)
        out = np.zeros(ids.shape, dtype=np.float32)
        if few.any():
            terms = np.flatnonzero(few[known.rows])
            looked_up, lists = known.take(np.flatnonzero(few)), (starts[terms], stops[terms])
            offsets = np.concatenate([[0], np.cumsum(number[few])])
            where = wanted & few[:, None]
            out[where] = candidate_scores(looked_up, lists, self.chunks, self.weights, offsets, ids[where])
        rest = np.flatnonzero(~few)
        for row, scores in zip(rest, self.scores(queries.take(rest)), strict=True):
            out[row, wanted[row]] = scores[ids[row, wanted[row]]]
        return out[wanted]


class BM25Searcher:
    """Searcher over a finished BM25 index. Distance = negated score; chunks that share no term are not retrieved.

    tokenizer: as the chunks' own; found through the manifests by default.
    """

    def __init__(self, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
        folder = Path(folder)
        manifest = open_manifest(folder, "index")
        self.config = from_dict(Bm25Config, manifest.config["bm25"], str(folder))
        self._fingerprint = manifest.fingerprint
        if tokenizer is None:
            tokenizer = open_chunk_tokenizer(input_path(folder, manifest, CHUNKS_KIND))
        self._tokenizer = tokenizer
        self._vocabulary = _map(folder / VOCABULARY)
        self._document_frequency = _map(folder / DOCUMENT_FREQUENCY)
        self._segments: list[_Segment] = []
        start = 0
        for shard in manifest.shards:
            arrays = {
                k: _map(segment_file(folder, k, shard["name"])) for k in ("terms", "offsets", "chunks", "weights")
            }
            self._segments.append(_Segment(start, int(shard["rows"]), **arrays))
            start += int(shard["rows"])
        self._num_chunks = start

    @property
    def num_chunks(self) -> int:
        """Chunks in the database."""
        return self._num_chunks

    def identity(self) -> dict[str, Any]:
        """The index by its fingerprint, which covers options, chunks and tokenizer."""
        return {"kind": "bm25", "index": self._fingerprint}

    def encode(self, token_rows: Sequence[np.ndarray]) -> TermCounts:
        """Counts of the terms that the index knows and that are not too frequent to be searched for."""
        terms = query_terms(token_rows, self._tokenizer, self.config)
        if len(self._vocabulary) == 0:
            return terms.where(np.zeros(len(terms.hashes), dtype=bool))
        place = np.minimum(np.searchsorted(self._vocabulary, terms.hashes), len(self._vocabulary) - 1)
        limit = self.config.max_document_frequency * self._num_chunks
        return terms.where((self._vocabulary[place] == terms.hashes) & (self._document_frequency[place] <= limit))

    def take(self, encoded: TermCounts, rows: np.ndarray) -> TermCounts:
        """Some of the encoded queries."""
        return encoded.take(rows)

    def search(self, token_rows: Sequence[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
        """(distances float32 [n, k], ids int64 [n, k]): see retro.retrieval.searcher.Searcher."""
        return self.search_encoded(self.encode(token_rows), k)

    def search_encoded(self, encoded: TermCounts, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `search`."""
        n = len(encoded)
        distances = np.full((n, k * max(len(self._segments), 1)), np.inf, dtype=np.float32)
        ids = np.full(distances.shape, -1, dtype=np.int64)
        for number, segment in enumerate(self._segments):
            if len(segment.terms) == 0:
                continue
            for row, scores in enumerate(segment.scores(encoded)):
                best = top_k(scores, k)
                place = slice(number * k, number * k + len(best))
                ids[row, place] = best + segment.start
                distances[row, place] = -scores[best]
        if len(self._segments) > 1:  # segments are in the order of the ids, so a stable sort keeps ties by id
            order = np.argsort(distances, axis=1, kind="stable")[:, :k]
            ids, distances = np.take_along_axis(ids, order, 1), np.take_along_axis(distances, order, 1)
        return distances, ids

    def score(self, encoded: TermCounts, ids: np.ndarray) -> np.ndarray:
        """BM25 scores float32 [n, c] of given chunks int64 [n, c]; 0 where no term is shared or the id is -1."""
        out = np.zeros(ids.shape, dtype=np.float32)
        for segment in self._segments:
            inside = (ids >= segment.start) & (ids < segment.start + segment.size)
            rows = np.flatnonzero(inside.any(axis=1))
            if len(rows) and len(segment.terms):
                part = out[rows]
                part[inside[rows]] = segment.score(encoded.take(rows), ids[rows] - segment.start, inside[rows])
                out[rows] = part
        return out


def segment_file(folder: Path, part: str, shard: str) -> Path:
    """Path of one array of one segment."""
    return folder / f"{part}-{shard}.npy"


def _row_sums(block: TermCounts) -> np.ndarray:
    return np.bincount(block.rows, weights=block.counts, minlength=len(block))


def _map(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactCorruptError(f"{path}: not a readable array ({error}); make the index again") from None
    return np.asarray(array)
