"""Windows of found chunks: no chunk twice, borders of documents, whole words; cases by hand and for any hits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.chunk import ChunkStage
from data_prep.runner import run_stage
from data_prep.tokenize_documents import TokenizeStage
from data_prep.train_tokenizer import TokenizerStage
from retro.config.prep_tokens import ChunkConfig, SentencePieceConfig, TokenizerConfig, TokensConfig
from retro.config.qa_prepare import QaPassagesConfig
from retro.data.chunk_store import open_chunk_store
from retro.data.document import Document
from retro.retrieval.chunk_text import open_chunk_tokenizer
from retro.retrieval.passages import PassageMaker, Window, choose_windows, surroundings
from tests.data_prep.prepared import write_documents

ONE = QaPassagesConfig(before=1, after=1)


def spans(windows: list[Window]) -> list[tuple[int, int, int]]:
    return [(window.first, window.last, window.chunk) for window in windows]


def windows_of(hits: list[int], config: QaPassagesConfig = ONE, last: int = 99, most: int | None = None) -> list:
    return spans(choose_windows(hits, [1.0] * len(hits), [(0, last)] * len(hits), config, most))


@pytest.mark.parametrize(
    ("chunk", "document", "expected"),
    [(5, (0, 9), (4, 6)), (0, (0, 9), (0, 2)), (9, (0, 9), (7, 9)), (4, (4, 4), (4, 4)), (5, (4, 5), (4, 5))],
)
def test_surroundings_at_the_ends_of_a_document(chunk: int, document: tuple[int, int], expected: tuple) -> None:
    assert surroundings(chunk, *document, 1, 1) == expected


def test_a_hit_inside_a_better_passage_adds_nothing() -> None:
    assert windows_of([5, 6, 4, 9]) == [(4, 6, 5), (8, 10, 9)]


def test_what_overlaps_is_written_once() -> None:
    assert windows_of([5, 7, 3]) == [(4, 6, 5), (7, 8, 7), (2, 3, 3)]


def test_a_passage_grows_by_what_lies_beside_it_as_far_as_there_is_room() -> None:
    config = QaPassagesConfig(before=1, after=1, max_chunks=5)
    assert windows_of([5, 7], config) == [(4, 8, 5)]
    assert windows_of([5, 7, 9], config) == [(4, 8, 5), (9, 10, 9)]
    # Beside two passages: the better one takes it if it has room.
    assert windows_of([5, 9, 7], config) == [(4, 7, 5), (8, 10, 9)]


def test_documents_stay_apart() -> None:
    found = choose_windows([4, 5], [2.0, 1.0], [(0, 4), (5, 9)], QaPassagesConfig(before=1, after=1, max_chunks=9))
    assert spans(found) == [(2, 4, 4), (5, 7, 5)]
    assert [window.score for window in found] == [2.0, 1.0]


def test_the_first_most_are_as_without_a_limit_to_them() -> None:
    assert windows_of([5, 20, 6, 40], most=2) == [(4, 6, 5), (19, 21, 20)]
    assert windows_of([], most=2) == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 29), unique=True, max_size=20),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 4),
    st.integers(1, 10),
)
def test_any_hits_are_covered_once_within_their_documents(
    hits: list[int], before: int, after: int, room: int, size: int
) -> None:
    config = QaPassagesConfig(before=before, after=after, max_chunks=before + 1 + after + room)
    bounds = [(hit // size * size, hit // size * size + size - 1) for hit in hits]
    found = choose_windows(hits, [1.0] * len(hits), bounds, config)
    chunks = [chunk for window in found for chunk in range(window.first, window.last + 1)]
    assert len(set(chunks)) == len(chunks) and set(hits) <= set(chunks)
    for window in found:
        assert window.first // size == window.last // size and window.chunks <= config.most_chunks
        assert window.first <= window.chunk <= window.last
    assert [w.chunk for w in found] == sorted((w.chunk for w in found), key=hits.index)


TEXTS = {
    "d0": "Incomprehensibilities notwithstanding, extraordinary internationalization " * 6,
    "d1": "A short text.",
    "d2": "Überraschenderweise schläft die Katze; 12345678 Mäuse tanzen währenddessen. " * 5,
}


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("passages")
    documents = [Document(name, text, name.upper(), "x:1", "", "train") for name, text in TEXTS.items()]
    documents += [Document(f"more{i}", f"filling words number {i} " * 20, "", "x:1", "", "train") for i in range(20)]
    folder = write_documents(root / "documents", documents)
    config = TokenizerConfig(train=SentencePieceConfig(vocab_size=340))
    tokenizer = run_stage(TokenizerStage(config, folder), root, progress=False)
    tokens = run_stage(TokenizeStage(TokensConfig(splits=("train",)), folder, tokenizer), root, progress=False)
    return run_stage(ChunkStage(ChunkConfig(8), tokens), root, progress=False)


def maker_of(chunks: Path, config: QaPassagesConfig = ONE) -> PassageMaker:
    return PassageMaker(open_chunk_store(chunks), open_chunk_tokenizer(chunks), config)


def test_bounds_are_those_of_the_documents(chunks: Path) -> None:
    maker = maker_of(chunks)
    ids = np.arange(maker.database.num_chunks)
    documents = maker.database.documents(ids)
    for chunk, (first, last) in zip(ids.tolist(), maker.bounds(ids), strict=True):
        own = np.flatnonzero(documents == documents[chunk])
        assert (first, last) == (own[0], own[-1])


def test_texts_are_whole_words_of_the_document(chunks: Path) -> None:
    maker = maker_of(chunks)
    cut = 0
    ids = np.arange(maker.database.num_chunks)
    windows = [
        Window(*surroundings(chunk, *bound, 1, 0), chunk, 0.0)
        for chunk, bound in zip(ids.tolist(), maker.bounds(ids), strict=True)
    ]
    texts = maker.texts(windows)
    assert maker.texts(windows[:1]) == texts[:1]
    for passage, window in zip(maker.passages(windows, texts), windows, strict=True):
        whole = TEXTS.get(passage.document)
        if whole is None:
            continue
        assert passage.title == passage.document.upper() and passage.chunk == window.first
        place = whole.find(passage.text)
        assert place >= 0 and passage.text == passage.text.strip()
        words = set(whole.replace(";", " ").replace(",", " ").replace(".", " ").split())
        mine = passage.text.replace(";", " ").replace(",", " ").replace(".", " ").split()
        # A word of more tokens than are looked at around a window may stay cut.
        cut += sum(word not in words for word in (mine[0], mine[-1]))
    assert cut <= len(texts) // 10


def test_a_document_of_one_chunk_is_its_text(chunks: Path) -> None:
    maker = maker_of(chunks)
    found = maker.document_windows(["d1"], [])
    assert maker.texts(found) == ["A short text."]


def test_the_windows_of_documents_cover_them_those_that_were_found_first(chunks: Path) -> None:
    maker = maker_of(chunks)
    every = maker.document_windows(["d0", "d0", "nowhere", "d2"], [])
    own = [(window.first, window.last) for window in every]
    documents = maker.database.documents(np.array([first for first, _ in own]))
    assert len(set(documents.tolist())) == 2 and all(last - first < ONE.window for first, last in own)
    middle = every[2]
    hit = Window(middle.first, middle.first + 1, middle.first, 5.0)
    elsewhere = maker.document_windows(["d1"], [])[0]
    again = maker.document_windows(["d2", "d0"], [elsewhere, hit])
    assert again[0] == hit and elsewhere not in again
    covered = sorted(c for window in again for c in range(window.first, window.last + 1))
    assert covered == sorted(c for window in every for c in range(window.first, window.last + 1))
    assert np.isnan([window.score for window in again[1:]]).all()


def test_no_windows_no_passages(chunks: Path) -> None:
    maker = maker_of(chunks)
    assert maker.texts([]) == [] and maker.passages([], []) == () and maker.document_windows([], []) == []
    assert maker.windows(np.array([-1, -1]), np.array([np.inf, np.inf], np.float32)) == []
