"""Analysis of texts and tokens into term counts."""

import numpy as np
import pytest

from retro.retrieval.terms import TermCounts, token_terms, word_terms


def _terms(text: str, max_ngram: int = 1) -> dict[int, float]:
    counts = word_terms([text], max_ngram)
    return dict(zip(counts.hashes.tolist(), counts.counts.tolist(), strict=True))


def test_case_is_ignored_and_repeats_are_counted() -> None:
    assert _terms("The cat, the CAT.") == _terms("cat the cat the")
    assert sorted(_terms("The cat, the CAT.").values()) == [2.0, 2.0]


@pytest.mark.parametrize(
    ("identifier", "parts"),
    [
        ("cross_entropy", ["cross", "entropy"]),
        ("torch.nn.Linear", ["torch", "nn", "linear"]),
        ("camelCaseName", ["camel", "case", "name"]),
        ("XMLParser2", ["xml", "parser", "2"]),
        ("größe_straße", ["größe", "straße"]),
    ],
)
def test_identifiers_count_whole_and_in_parts(identifier: str, parts: list[str]) -> None:
    found = _terms(identifier)
    for part in parts:
        assert found.keys() >= _terms(part).keys(), part
    assert len(found) == len(parts) + 1


def test_ngrams_are_of_adjacent_parts_within_one_text() -> None:
    one, two = _terms("alpha beta gamma"), _terms("alpha beta gamma", 2)
    assert len(one) == 3 and len(two) == 5
    assert two.keys() & _terms("alpha_beta", 2).keys() > one.keys() & _terms("alpha_beta").keys()
    assert not (two.keys() - one.keys()) & _terms("alpha gamma beta", 2).keys()
    both = word_terms(["alpha", "beta"], 2)  # no n-gram across texts
    assert len(both.hashes) == 2
    assert len(_terms("a b c d", 3)) == 4 + 3 + 2


def test_token_ngrams_match_a_slow_count() -> None:
    generator = np.random.default_rng(0)
    rows = [generator.integers(3, 9, size=n) for n in (0, 1, 2, 30, 17)]
    found = token_terms(rows, 2)
    for i, row in enumerate(rows):
        expected: dict[tuple[int, ...], int] = {}
        for length in (1, 2):
            for start in range(len(row) - length + 1):
                gram = tuple(row[start : start + length].tolist())
                expected[gram] = expected.get(gram, 0) + 1
        counts = found.counts[found.offsets[i] : found.offsets[i + 1]]
        assert sorted(counts.tolist()) == sorted(expected.values())


def test_rows_do_not_depend_on_their_batch() -> None:
    texts = ["one two", "", "__ ...", "three three four_five"]
    together = word_terms(texts, 2)
    assert np.diff(together.offsets).tolist() == [3, 0, 0, 7]
    for i, text in enumerate(texts):
        alone, taken = word_terms([text], 2), together.take(np.array([i]))
        assert alone.hashes.tolist() == taken.hashes.tolist() and alone.counts.tolist() == taken.counts.tolist()
        assert (np.diff(alone.hashes.astype(object)) > 0).all()


def test_no_text_at_all() -> None:
    for counts in (word_terms([], 2), token_terms([], 2)):
        assert len(counts) == 0 and len(counts.hashes) == 0


def test_where_keeps_rows_aligned() -> None:
    counts = TermCounts(np.array([0, 2, 2, 3]), np.array([5, 6, 7], np.uint64), np.ones(3, np.float32))
    kept = counts.where(np.array([False, True, True]))
    assert kept.offsets.tolist() == [0, 1, 1, 2] and kept.hashes.tolist() == [6, 7] and kept.rows.tolist() == [0, 2]
