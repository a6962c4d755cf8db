"""BM25 against a slow, obvious scorer."""

import math
from pathlib import Path

import numpy as np
import pytest

from retro.config.prep_index import Bm25Config
from tests.retrieval.bm25_index import bm25_index


def _rows(generator: np.random.Generator, n: int) -> list[np.ndarray]:
    # Zipf-like, with specials (0..2), duplicates and empty chunks
    rows = [np.minimum(generator.zipf(1.5, size=generator.integers(0, 12)) + 1, 40) for _ in range(n)]
    rows[3] = rows[1]
    rows[5] = np.zeros(0, dtype=np.int64)
    return rows


def _grams(row: np.ndarray, max_ngram: int, words: bool) -> list[tuple[object, ...]]:
    tokens = [int(t) for t in row if t >= 3]
    grams: list[tuple[object, ...]] = []
    sequence: list[object] = list(tokens)
    if words:  # token t reads "w<t>x": parts w, <t>, x and the whole
        sequence = [part for t in tokens for part in ("w", t, "x")]
        grams += [("whole", t) for t in tokens]
    for length in range(1, max_ngram + 1):
        grams += [tuple(sequence[i : i + length]) for i in range(len(sequence) - length + 1)]
    return grams


def _slow_scores(query: np.ndarray, chunks: list[np.ndarray], config: Bm25Config) -> list[float]:
    words = config.terms == "words"
    documents = [_grams(c, config.max_ngram, words) for c in chunks]
    average = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for term in _grams(query, config.max_ngram, words):  # repeated query terms add up
            frequency = sum(term in d for d in documents)
            if frequency == 0 or frequency > config.max_document_frequency * len(documents):
                continue
            idf = math.log(1 + (len(documents) - frequency + 0.5) / (frequency + 0.5))
            tf = document.count(term)
            norm = 1 - config.b + config.b * len(document) / average
            score += idf * tf * (config.k1 + 1) / (tf + config.k1 * norm) if tf else 0.0
        scores.append(score)
    return scores


@pytest.mark.parametrize(
    "config",
    [
        Bm25Config(terms="tokens", max_ngram=1),
        Bm25Config(terms="tokens", max_ngram=2, k1=0.8, b=0.3),
        Bm25Config(terms="tokens", max_ngram=1, max_document_frequency=0.3),
        Bm25Config(terms="words", max_ngram=1, k1=2.0, b=1.0),
        Bm25Config(terms="words", max_ngram=2, b=0.0),
    ],
)
def test_scores_ids_and_ties_match_the_slow_scorer(config: Bm25Config, tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    chunks, queries = _rows(generator, 50), _rows(generator, 12)
    searcher = bm25_index(tmp_path / "index", [chunks[:20], chunks[20:21], chunks[21:]], config)
    distances, ids = searcher.search(queries, 8)
    all_ids = np.tile(np.arange(50), (12, 1))
    scored = searcher.score(searcher.encode(queries), all_ids)
    for i, query in enumerate(queries):
        slow = np.array(_slow_scores(query, chunks, config))
        np.testing.assert_allclose(scored[i], slow, rtol=1e-5, atol=1e-6)
        positive = [j for j in np.lexsort((np.arange(50), -scored[i])) if slow[j] > 0][:8]
        assert ids[i].tolist() == positive + [-1] * (8 - len(positive))
        np.testing.assert_array_equal(distances[i, : len(positive)], -scored[i][positive])
        assert np.isinf(distances[i, len(positive) :]).all()
    assert (ids[5] == -1).all()  # an empty query finds nothing


def test_equal_chunks_come_in_the_order_of_their_ids_across_segments(tmp_path: Path) -> None:
    row = np.array([5, 6, 7])
    searcher = bm25_index(tmp_path / "index", [[row] * 3, [row] * 3, [row + 10]], Bm25Config(terms="tokens"))
    distances, ids = searcher.search([row], 5)
    assert ids.tolist() == [[0, 1, 2, 3, 4]] and len(set(distances[0].tolist())) == 1


def test_results_do_not_depend_on_batching(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    chunks = _rows(generator, 300)
    searcher = bm25_index(tmp_path / "index", [chunks], Bm25Config(terms="words"))
    distances, ids = searcher.search(chunks, 20)
    encoded = searcher.encode(chunks)
    for i in (0, 7, 299):
        alone = searcher.search([chunks[i]], 20)
        taken = searcher.search_encoded(searcher.take(encoded, np.array([i])), 20)
        for part, expected in ((0, distances), (1, ids)):
            assert alone[part].tobytes() == taken[part].tobytes() == expected[i].tobytes()


def test_every_option_changes_the_scores(tmp_path: Path) -> None:
    chunks = _rows(np.random.default_rng(5), 60)
    options = [{}, {"terms": "words"}, {"max_ngram": 3}, {"k1": 0.5}, {"b": 0.1}, {"max_document_frequency": 0.1}]
    found = set()
    for number, option in enumerate(options):
        config = Bm25Config(**{"terms": "tokens", **option})  # type: ignore[arg-type]
        found.add(bm25_index(tmp_path / str(number), [chunks], config).search(chunks, 5)[0].tobytes())
    assert len(found) == len(options)


def test_scores_of_no_chunk_are_zero(tmp_path: Path) -> None:
    searcher = bm25_index(tmp_path / "index", [[np.array([5, 6])], [np.array([7])]], Bm25Config(terms="tokens"))
    encoded = searcher.encode([np.array([5, 7]), np.array([30])])
    scores = searcher.score(encoded, np.array([[-1, 1, 0], [0, 1, -1]]))
    assert scores[0, 0] == 0 and (scores[0, 1:] > 0).all() and (scores[1] == 0).all()


def test_a_database_without_any_term(tmp_path: Path) -> None:
    searcher = bm25_index(tmp_path / "index", [[np.array([1, 2]), np.zeros(0, int)]], Bm25Config())
    distances, ids = searcher.search([np.array([5])], 3)
    assert (ids == -1).all() and np.isinf(distances).all()
