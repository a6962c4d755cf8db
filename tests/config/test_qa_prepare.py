"""Configurations of `retro qa prepare`: what is read, and what is refused instead of ignored."""

from __future__ import annotations

import pytest

from retro.config.errors import ConfigError
from retro.config.loader import load_config
from retro.config.qa_prepare import QaPassagesConfig, QaPrepareConfig, QaRetrievalConfig

GIVEN = ["root=x", "task=popqa", "release=r.json"]


def build(*overrides: str, given: list[str] = GIVEN) -> QaPrepareConfig:
    return load_config(QaPrepareConfig, None, [*given, *overrides])


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("retrieval.method=release",),
        ("retrieval.method=release", "retrieval.rerank=bm25", "retrieval.bm25.title=1"),
        ("retrieval.rerank=dense", "retrieval.embed.kind=lexical"),
        ("retrieval.method=dense", "retrieval.rerank=bm25"),
        ("retrieval.method=dense", "retrieval.embed.kind=lexical", "retrieval.vectors.factory=HNSW32"),
        ("retrieval.method=hybrid", "retrieval.rank_constant=10"),
        ("retrieval.method=hybrid", "retrieval.fusion=weighted", "retrieval.dense_weight=0.3"),
        ("passages.before=0", "passages.max_chunks=3"),
    ],
)
def test_what_is_read_is_accepted(overrides: tuple[str, ...]) -> None:
    assert build(*overrides).retrieval.method in ("bm25", "release", "dense", "hybrid")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("retrieval.method=release", "retrieval.bm25.title=1"), "bm25: is not read by method 'release'"),
        (("retrieval.embed.kind=lexical",), "embed: is not read by method 'bm25'"),
        (("retrieval.method=dense", "retrieval.vectors.factory=HNSW32"), "vectors: .* without embed"),
        (("retrieval.fusion=weighted",), "fusion: is not read by method 'bm25'"),
        (("retrieval.method=hybrid", "retrieval.dense_weight=0.3"), "dense_weight: .* fusion 'reciprocal_rank'"),
        (
            ("retrieval.method=hybrid", "retrieval.fusion=weighted", "retrieval.rank_constant=3"),
            "rank_constant: .* fusion 'weighted'",
        ),
        (("retrieval.rerank=bm25",), "rerank: bm25 orders the candidates already"),
        (("retrieval.candidates=5",), r"candidates: expected at least passages.keep = 20, found 5"),
        (("passages.max_chunks=2",), r"max_chunks: expected at least before \+ 1 \+ after = 3, found 2"),
        (("passages.keep=0",), "keep: expected 1 or more"),
        (("retrieval.dense_weight=1",), "dense_weight: expected between 0 and 1"),
        (("retrieval.method=given",), "release: passages that came with the questions are not searched for"),
        (("release=null",), "release: retrieval.method 'bm25' searches a database"),
        (("task=",), "task"),
        (("shard_questions=0",), "shard_questions: expected 1 or more"),
    ],
)
def test_what_is_not_read_or_does_not_fit_is_refused(overrides: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        build(*overrides)


@pytest.mark.parametrize(
    "override",
    ["passages.before=0", "passages.after=2", "passages.max_chunks=9", "retrieval.rerank=bm25"]
    + ["retrieval.candidates=50", "retrieval.bm25.k1=1", "release=r.json"],
)
def test_given_passages_take_no_option_of_a_search(override: str) -> None:
    given = ["root=x", "task=popqa", "retrieval.method=given"]
    assert build(given=given).release is None
    with pytest.raises(ConfigError):
        build(override, given=given)


def test_questions_of_a_release_with_their_own_passages_name_it() -> None:
    given = ["root=x", "task=docs", "retrieval.method=given", "source.release=docs", "release=r.json"]
    assert build(given=given).release == "r.json"


def test_what_is_built() -> None:
    assert QaRetrievalConfig().builds_bm25 and not QaRetrievalConfig().uses_dense
    assert not QaRetrievalConfig(method="release").builds_bm25
    assert QaRetrievalConfig(method="release", rerank="bm25").builds_bm25
    both = QaRetrievalConfig(method="hybrid")
    assert both.builds_bm25 and both.uses_dense
    assert QaRetrievalConfig(rerank="dense").uses_dense
    assert QaPassagesConfig(before=2, after=0).most_chunks == 3
    assert QaPassagesConfig(max_chunks=7).most_chunks == 7
