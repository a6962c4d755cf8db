"""PackedDataset against a slow reference: tokens, targets, masks, documents, chunks, neighbors; removed documents."""

from __future__ import annotations

import itertools
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retro.config.errors import ArtifactCorruptError, ConfigError
from retro.data.batch import RetroBatch
from retro.data.chunk_store import open_chunk_store
from retro.data.dataset import RetroDataset
from retro.data.loader import TrainLoader, iter_batches
from retro.data.order import SampleStream
from retro.data.packed_dataset import PackedDataset
from retro.data.packed_stream import PackedStream
from tests.data.builders import (
    PAD,
    TinyRelease,
    build_tiny_release,
    write_chunks,
    write_fake_tokenizer,
    write_tokens,
)
from tests.data.packed_corpus import Corpus, K, M, build
from tests.reference.slow_packing import Sequence

FIELDS = ("tokens_BN", "targets_BN", "loss_mask_BN", "neighbors_BLKR", "neighbor_mask_BLKR", "chunk_ids_BL")
FIELDS += ("document_starts_BN", "chunk_ends_BL")
ANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(data: PackedDataset, corpus: Corpus, batch: RetroBatch, expected: list[Sequence]) -> None:
    """Each field of `batch` against the sequences expected."""
    owner = [number for number, ids in enumerate(corpus.chunks) for _ in ids]
    rows = -(-data.sequence_length // M)
    assert batch.chunk_ids_BL.shape == batch.chunk_ends_BL.shape == (len(expected), rows)  # type: ignore[union-attr]
    for b, sequence in enumerate(expected):
        assert batch.tokens_BN[b].tolist() == [data.pad_id if t is None else t for t in sequence.tokens]
        assert batch.loss_mask_BN[b].tolist() == sequence.scored
        scored = np.flatnonzero(sequence.scored)
        assert batch.targets_BN[b, scored].tolist() == [sequence.targets[p] for p in scored]
        assert batch.document_starts_BN[b].tolist() == sequence.starts  # type: ignore[index]
        unused = [-1] * (rows - len(sequence.rows))
        assert batch.chunk_ids_BL[b].tolist() == [chunk for chunk, _ in sequence.rows] + unused
        assert batch.chunk_ends_BL[b].tolist() == [end for _, end in sequence.rows] + unused  # type: ignore[index]
        touched = {corpus.keys[d] for d in sequence.documents if d is not None}
        for row in range(rows):
            allowed: list[int] = []
            if row < len(sequence.rows):
                chunk = sequence.rows[row][0]
                source = int(data._exchange[chunk]) if data.retrieval == "shuffled" else chunk
                allowed = [c for c in corpus.table[source].tolist() if c >= 0 and corpus.keys[owner[c]] not in touched]
            for place in range(K):
                text: list[int] = []
                if place < len(allowed):
                    found = allowed[place]
                    start = corpus.chunks[owner[found]].index(found) * M
                    text = corpus.documents[owner[found]][start : start + 2 * M]
                padded = text + [data.pad_id] * (2 * M - len(text))
                assert batch.neighbors_BLKR[b, row, place].tolist() == padded  # type: ignore[index]
                assert batch.neighbor_mask_BLKR[b, row, place].sum() == len(text)  # type: ignore[index]


lengths_of_documents = st.lists(st.integers(2, 30), min_size=2, max_size=10)


@ANY
@given(data=st.data())
def test_every_field_equals_the_slow_reference(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    lengths = data.draw(lengths_of_documents)
    removed = sorted(data.draw(st.sets(st.integers(0, len(lengths) - 1), max_size=len(lengths) - 1)))
    exclude, shards = data.draw(st.sampled_from(["documents", "groups"])), data.draw(st.integers(1, 2))
    corpus = build(tmp_path_factory.mktemp("p"), lengths, removed, exclude, data.draw(st.integers(0, 9)), shards)
    length, score_last = data.draw(st.integers(1, 40)), data.draw(st.booleans())
    mode = data.draw(st.sampled_from(["on", "shuffled"]))
    dataset = corpus.data(length, score_last_position=score_last, retrieval=mode)
    expected = corpus.pack(length, score_last)
    assert len(dataset) == len(expected)
    samples = data.draw(st.permutations(range(len(expected))))
    batch = dataset.__getitems__(samples)
    assert batch.sample_ids_B.tolist() == samples
    check(dataset, corpus, batch, [expected[i] for i in samples])
    padding = sum(t is None for s in expected for t in s.tokens) / (length * len(expected))
    assert dataset.padding_share() == pytest.approx(padding)
    for row, sample in enumerate(samples[:3]):
        one = dataset[sample]
        assert all(np.array_equal(getattr(one, name)[0], getattr(batch, name)[row]) for name in FIELDS)


@ANY
@given(data=st.data())
def test_each_token_but_the_first_of_a_document_is_scored_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    corpus = build(tmp_path_factory.mktemp("p"), data.draw(lengths_of_documents), [0])
    length = data.draw(st.integers(1, 40))
    whole = list(iter_batches(corpus.data(length, score_last_position=True, retrieval="off"), 3))
    scored = [t for b in whole for t in b.targets_BN[b.loss_mask_BN].tolist()]
    assert scored == [t for document in corpus.documents for t in document[1:]]
    for batch, training in zip(whole, iter_batches(corpus.data(length, retrieval="off"), 3), strict=True):
        assert not training.loss_mask_BN[:, -1].any()
        assert np.array_equal(training.loss_mask_BN[:, :-1], batch.loss_mask_BN[:, :-1])


@ANY
@given(data=st.data())
def test_places_in_the_stream(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Across marks, and with long runs of removed chunks."""
    lengths = data.draw(st.lists(st.sampled_from([2, 3, 9, 400, 700]), min_size=1, max_size=8))
    removed = sorted(data.draw(st.sets(st.integers(0, len(lengths) - 1), max_size=len(lengths) - 1)))
    corpus = build(tmp_path_factory.mktemp("p"), lengths, removed)
    stream = PackedStream(open_chunk_store(corpus.folder / "c"))
    expected = [
        (chunk, offset // M * M - offset)
        for document, chunks in zip(corpus.documents, corpus.chunks, strict=True)
        for offset, chunk in zip(range(len(document)), np.repeat(chunks, M).tolist(), strict=False)
    ]
    assert stream.num_tokens == len(expected)
    positions = np.array(data.draw(st.permutations(range(len(expected))))[:50], dtype=np.int64)
    chunks, starts = stream.locate(positions)
    assert list(zip(chunks.tolist(), (starts - positions).tolist(), strict=True)) == [expected[p] for p in positions]
    for wrong in (-1, len(expected)):
        with pytest.raises(IndexError, match="positions: expected 0 to"):
            stream.locate(np.array([0, wrong]))


def test_off_differs_from_on_in_the_neighbors_only(tmp_path: Path) -> None:
    corpus = build(tmp_path, [30, 7, 12, 3, 25])
    on, off = corpus.data(10), corpus.data(10, retrieval="off")
    a, b = on.__getitems__(np.arange(len(on))), off.__getitems__(np.arange(len(on)))
    assert b.neighbors_BLKR is None and b.neighbor_mask_BLKR is None
    for name in FIELDS[:3] + FIELDS[5:]:
        assert np.array_equal(getattr(a, name), getattr(b, name))
    assert a.tokens_BN.dtype == a.targets_BN.dtype == a.document_starts_BN.dtype == np.int32  # type: ignore[union-attr]
    tensors = a.to_torch()
    for name in ("document_starts_BN", "chunk_ends_BL"):
        assert np.array_equal(getattr(tensors, name).numpy(), getattr(a, name))
        assert getattr(tensors, name).dtype.is_signed and getattr(tensors, name).element_size() == 8


def test_the_rows_of_a_cut_chunk_come_with_its_last_token(tmp_path: Path) -> None:
    """Worked out by hand: one document of 11 tokens in sequences of 5."""
    corpus = build(tmp_path / "one", [11])
    batch = corpus.data(5, score_last_position=True).__getitems__([0, 1, 2])
    # Chunks 0 = 0..3, 1 = 4..7 (cut after its first token), 2 = 8..10, which is short.
    assert batch.chunk_ids_BL.tolist() == [[0, -1], [1, -1], [-1, -1]]
    assert batch.chunk_ends_BL.tolist() == [[3, -1], [2, -1], [-1, -1]]  # type: ignore[union-attr]
    assert batch.loss_mask_BN.tolist() == [[True] * 5, [True] * 5, [False] * 5]
    assert batch.document_starts_BN.tolist() == [[0] * 5, [0] * 5, [0, 1, 1, 1, 1]]  # type: ignore[union-attr]
    # The example of docs/concepts.md: documents of 6 and 11 tokens (in this order of use) in sequences of 8.
    two = build(tmp_path / "two", [11, 6]).data(8, score_last_position=True).__getitems__([0, 1, 2])
    assert two.document_starts_BN.tolist() == [[0] * 6 + [6] * 2, [0] * 8, [0] + [1] * 7]  # type: ignore[union-attr]
    assert two.chunk_ends_BL.tolist() == [[3, -1], [1, 5], [-1, -1]]  # type: ignore[union-attr]
    assert two.chunk_ids_BL.tolist() == [[0, -1], [2, 3], [-1, -1]]
    assert two.loss_mask_BN.tolist() == [[True] * 5 + [False] + [True] * 2, [True] * 8, [False] * 8]
    # The chunk's last token is the last position: its neighbors serve that one only, if it is scored at all.
    assert corpus.data(4, score_last_position=True)[0].chunk_ends_BL.tolist() == [[3]]  # type: ignore[union-attr]
    assert corpus.data(4)[0].chunk_ends_BL.tolist() == [[-1]]  # type: ignore[union-attr]


def test_what_chunks_lack_is_counted(tmp_path: Path) -> None:
    corpus = build(tmp_path, [12, 9, 30, 22], exclude="groups", seed=3)
    data = corpus.data(25)
    missing, unstored, chunks = 0, 0, 0
    owner = [number for number, ids in enumerate(corpus.chunks) for _ in ids]
    for sequence in corpus.pack(25, score_last=False):
        touched = {corpus.keys[d] for d in sequence.documents if d is not None}
        for chunk, _ in sequence.rows:
            stored = [c for c in corpus.table[chunk].tolist() if c >= 0]
            unstored += max(K - len(stored), 0)
            missing += max(K - sum(corpus.keys[owner[c]] not in touched for c in stored), 0)
            chunks += 1
    found = data.shortage()
    assert (found.chunks, found.entries) == (chunks, chunks * K)
    assert (found.unstored, found.excluded) == (unstored, missing - unstored) and found.excluded > 0
    assert corpus.data(25, retrieval="off").shortage().entries == 0


def test_padding_of_both_layouts(tmp_path: Path) -> None:
    corpus = build(tmp_path, [5, 9, 2])  # chunks of 4 + 1, 4 + 4 + 1 and 2 tokens
    packed = corpus.data(8)
    assert packed.padding_share() == 0.0 and len(packed) == 2
    chunks = RetroDataset(packed.queries, packed.database, packed.neighbors, sequence_length=8, num_neighbors=K)
    assert chunks.padding_share() == pytest.approx(1 - 16 / 24)
    assert corpus.data(12).padding_share() == pytest.approx(8 / 24)


def test_sequence_lengths_and_numbers_that_there_are_not(tmp_path: Path) -> None:
    corpus = build(tmp_path, [5, 9, 2])
    with pytest.raises(ConfigError, match="sequence_length: expected 1 or more, found 0"):
        corpus.data(0)
    data = corpus.data(8)
    for wrong in (-1, len(data)):
        with pytest.raises(IndexError, match="sequences: expected 0 to 1"):
            data.__getitems__([0, wrong])
    assert data.__getitems__([]).tokens_BN.shape == (0, 8)


def test_a_split_of_removed_documents_has_no_sequence(tmp_path: Path) -> None:
    assert len(build(tmp_path, [5, 9], removed=[0, 1]).data(8)) == 0


def test_damage_is_told(tmp_path: Path) -> None:
    corpus = build(tmp_path, [20, 9])
    path = corpus.folder / "c" / "starts-00000.npy"
    starts = np.load(path)
    np.save(path, starts + 10_000)
    data = corpus.data(8)
    with pytest.raises(ArtifactCorruptError, match="starts-"):
        data[0]
    with pytest.raises(ArtifactCorruptError, match="chunk again"):
        data.verify()


def test_memory_is_a_number_for_many_chunks(tmp_path: Path) -> None:
    """Not one per token, chunk or document, also while the chunks are counted."""
    tokens = write_tokens(tmp_path / "t", [[[7] * 398] * 2000], write_fake_tokenizer(tmp_path / "k"))
    store = open_chunk_store(write_chunks(tmp_path / "c", tokens, M))  # 200,000 chunks, 800,000 tokens
    data = PackedDataset(store, None, None, sequence_length=64, retrieval="off", pad_id=PAD)
    tracemalloc.start()
    try:
        data.__getitems__(np.arange(4))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 200_000 and peak < 8_000_000
    assert len(pickle.dumps(data)) < 30_000


G = 12


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> TinyRelease:
    return build_tiny_release(tmp_path_factory.mktemp("tiny"), shards=2)


@pytest.fixture(scope="module")
def loaded(release: TinyRelease) -> PackedDataset:
    store, table = release.open()
    return PackedDataset(store, store, table, sequence_length=32, num_neighbors=2, pad_id=PAD)


def steps(data: PackedDataset, count: int, world: int = 1, start: int = 0, **options: int) -> list[list[np.ndarray]]:
    """Every field of the global batches, whatever ranks and micro-batches they come in."""
    ranks = []
    for rank in range(world):
        given = {"micro_batch": 2, "seed": 5, **options}
        loader = TrainLoader(data, global_batch=G, rank=rank, world=world, start_sample=start, **given)
        ranks.append(list(itertools.islice(loader, count * loader.micro_batches_per_step)))
        assert loader.samples_consumed == start + count * G
    per_step = len(ranks[0]) // count
    return [
        [
            np.concatenate([getattr(b, name) for rank in ranks for b in rank[t * per_step : (t + 1) * per_step]])
            for name in (*FIELDS, "sample_ids_B")
        ]
        for t in range(count)
    ]


def same(a: list[list[np.ndarray]], b: list[list[np.ndarray]]) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(x, y) for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True)
    )


def test_the_stream_is_the_same_for_every_world_size_and_restart(loaded: PackedDataset) -> None:
    expected = steps(loaded, 5)  # several epochs
    assert 2 * len(loaded) < 5 * G
    assert np.array_equal(np.concatenate([s[-1] for s in expected]), SampleStream(len(loaded), 5).take(0, 5 * G))
    for options in ({"world": 2}, {"world": 3}, {"micro_batch": 12}, {"micro_batch": 1, "world": 3}, {"prefetch": 5}):
        assert same(steps(loaded, 5, **options), expected), options
    assert same(steps(loaded, 3, start=2 * G), expected[2:])
    assert not same(steps(loaded, 5, seed=6), expected)


def test_worker_processes_give_the_stream_of_the_thread(loaded: PackedDataset) -> None:
    assert same(steps(loaded, 3, start=G, num_workers=2), steps(loaded, 3, start=G))
