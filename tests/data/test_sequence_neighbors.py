"""Neighbors within sequences: any sequence length from one table, nothing of the sequence's documents, in order."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retro.data.chunk_store import open_chunk_store
from retro.data.dataset import RetroDataset
from retro.data.neighbor_table import open_neighbor_table
from tests.data.builders import PAD, random_neighbors, write_chunks, write_fake_tokenizer, write_neighbors, write_tokens

M = 4


def build(root: Path, lengths: list[int], keep: int, exclude: str, seed: int) -> tuple[RetroDataset, list[str]]:
    """(data set of sequences of one chunk, group of every chunk): documents of these lengths, two to a group."""
    groups = [f"g{i // 2}" for i in range(len(lengths))]
    tokens = write_tokens(root / "t", [[[7] * n for n in lengths]], write_fake_tokenizer(root / "k"), groups=groups)
    chunks = write_chunks(root / "c", tokens, M)
    store = open_chunk_store(chunks)
    own = [groups[int(d)] for d in store.documents(np.arange(store.num_chunks))]
    table = random_neighbors(chunks, keep, 0.3, seed)
    if exclude == "groups":
        for row in range(len(table)):
            allowed = [c for c in table[row] if c >= 0 and own[c] != own[row]]
            table[row] = (allowed + [-1] * keep)[:keep]
    folder = write_neighbors(root / "n", chunks, chunks, table, exclude=exclude)
    table_ = open_neighbor_table(folder, store, store)
    return RetroDataset(store, store, table_, sequence_length=M, num_neighbors=1, pad_id=PAD), own


def resize(data: RetroDataset, chunks: int, k: int, **options: object) -> RetroDataset:
    """The same table with other sequences."""
    return RetroDataset(  # type: ignore[arg-type]
        data.queries, data.database, data.neighbors, sequence_length=chunks * M, num_neighbors=k, pad_id=PAD, **options
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_first_allowed_of_the_stored_neighbors_for_any_packing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 20), min_size=2, max_size=10))
    keep, exclude = data.draw(st.integers(1, 8)), data.draw(st.sampled_from(["documents", "groups"]))
    first, groups = build(tmp_path_factory.mktemp("s"), lengths, keep, exclude, data.draw(st.integers(0, 9)))
    k, length = data.draw(st.integers(1, keep)), data.draw(st.integers(1, 7))
    dataset = resize(first, length, k)
    store = dataset.queries
    documents = store.documents(np.arange(store.num_chunks)).tolist()
    key = groups if exclude == "groups" else documents
    table = np.concatenate([np.load(f) for f in sorted(first.neighbors.folder.glob("ids-*.npy"))])  # type: ignore[union-attr]
    samples = data.draw(st.permutations(range(len(dataset))))
    batch = dataset.__getitems__(samples)
    found = dataset.neighbor_ids(batch.chunk_ids_BL, k)
    for sequence, ids in zip(batch.chunk_ids_BL.tolist(), found.tolist(), strict=True):
        touched = {key[c] for c in sequence if c >= 0}
        for chunk, row in zip(sequence, ids, strict=True):
            allowed = [] if chunk < 0 else [c for c in table[chunk].tolist() if c >= 0 and key[c] not in touched]
            assert row == (allowed + [-1] * k)[:k]


def test_a_new_sequence_length_batch_or_seed_needs_no_new_search(tmp_path: Path) -> None:
    first, _ = build(tmp_path, [30, 7, 12, 3, 25, 18, 9], 8, "documents", 0)
    for chunks in (1, 2, 3, 8):
        for seed in (0, 5):
            data = resize(first, chunks, 2, seed=seed)
            whole = data.__getitems__(list(range(len(data))))
            for sample in range(len(data)):
                one = data[sample]
                assert np.array_equal(one.neighbors_BLKR, whole.neighbors_BLKR[sample : sample + 1])  # type: ignore[index]
                documents = set(data.queries.documents(one.chunk_ids_BL[one.chunk_ids_BL >= 0]).tolist())
                ids = data.neighbor_ids(one.chunk_ids_BL, 2)
                assert not documents & set(data.queries.documents(ids[ids >= 0]).tolist())


def test_what_chunks_lack_is_counted_and_told_apart(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "t", [[[5], [6], [7], [8]]], write_fake_tokenizer(tmp_path / "k"))
    chunks = write_chunks(tmp_path / "c", tokens, M)
    store = open_chunk_store(chunks)
    # Sequences of two chunks (documents): row 0 loses 1 to its sequence and has 2 left, row 1 has nothing left, row 2
    # never had a second one, row 3 is full.
    table = np.array([[1, 2, 3], [0, -1, -1], [0, -1, -1], [0, 1, -1]])
    folder = write_neighbors(tmp_path / "n", chunks, chunks, table)
    opened = open_neighbor_table(folder, store, store)
    data = RetroDataset(store, store, opened, sequence_length=2 * M, num_neighbors=2, pad_id=PAD)
    chunk_ids = np.array([[0, 1], [2, 3]])
    assert data.neighbor_ids(chunk_ids, 2).tolist() == [[[2, 3], [-1, -1]], [[0, -1], [0, 1]]]
    shortage = data.shortage()
    assert (shortage.chunks, shortage.entries, shortage.unstored, shortage.excluded) == (4, 8, 2, 1)
    off = RetroDataset(store, None, None, sequence_length=2 * M, retrieval="off", pad_id=PAD)
    assert off.shortage().entries == 0
    # The control is given the rows of other chunks, and what those have is what it may lack.
    for seed in range(6):
        control = resize(data, 2, 2, retrieval="shuffled", seed=seed)
        given = (table[control._exchange][:, :2] < 0).reshape(2, 4).sum(axis=1)  # by sequence
        missing = (control.neighbor_ids(chunk_ids, 2) < 0).reshape(2, 4).sum(axis=1)
        sampled = control.shortage(1)
        assert (sampled.unstored, sampled.excluded) in list(zip(given, missing - given, strict=True))


def test_the_sample_of_a_huge_data_set_is_drawn_in_little_memory(tmp_path: Path) -> None:
    class Huge(RetroDataset):
        def __len__(self) -> int:
            return 50_000_000

    small, _ = build(tmp_path, [9, 12, 7], 3, "documents", 0)
    assert small.neighbors is not None
    data = Huge(small.queries, small.database, small.neighbors, sequence_length=M, num_neighbors=1, pad_id=PAD)
    tracemalloc.start()
    try:
        assert data.shortage(200).chunks <= 200
        assert tracemalloc.get_traced_memory()[1] < 20e6  # a permutation of all has 400 MB
    finally:
        tracemalloc.stop()
    assert small.shortage(2).chunks == 2


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_queries_and_database_of_different_stores_and_the_control(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Documents have other numbers in another store: their keys decide. The control excludes its own sequence too."""
    root = tmp_path_factory.mktemp("d")
    tokenizer, exclude = write_fake_tokenizer(root / "k"), data.draw(st.sampled_from(["documents", "groups"]))
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    # The stores share some documents (by id) at other places, and some groups.
    sizes = [int(n) for n in generator.integers(1, 18, size=6)]
    stores, keys = [], []
    for name, documents in (("q", [0, 1, 2, 3, 4, 5]), ("d", [4, 2, 7, 8, 0, 9, 5])):
        of = [f"g{i % 4}" for i in documents]
        lengths = [sizes[i] if i < 6 else 7 for i in documents]
        ids = [str(i) for i in documents]
        tokens = write_tokens(root / f"t{name}", [[[9] * n for n in lengths]], tokenizer, groups=of, document_ids=ids)
        store = open_chunk_store(write_chunks(root / f"c{name}", tokens, M))
        number = store.documents(np.arange(store.num_chunks)).tolist()
        keys.append([of[i] if exclude == "groups" else ids[i] for i in number])
        stores.append(store)
    queries, database = stores
    table = np.full((queries.num_chunks, 6), -1)
    for row in range(len(table)):
        allowed = [c for c in range(database.num_chunks) if keys[1][c] != keys[0][row]]
        found = generator.permutation(allowed)[: int(generator.integers(0, 7))]
        table[row, : len(found)] = found
    folder = write_neighbors(root / "n", queries.folder, database.folder, table, exclude=exclude)
    dataset = RetroDataset(
        queries,
        database,
        open_neighbor_table(folder, queries, database),
        sequence_length=M * data.draw(st.integers(1, 5)),
        num_neighbors=2,
        pad_id=PAD,
        retrieval=data.draw(st.sampled_from(["on", "shuffled"])),
    )
    batch = dataset.__getitems__(np.arange(len(dataset)))
    source = dataset._exchange if dataset.retrieval == "shuffled" else np.arange(queries.num_chunks)
    for chunks, found in zip(
        batch.chunk_ids_BL.tolist(), dataset.neighbor_ids(batch.chunk_ids_BL, 2).tolist(), strict=True
    ):
        touched = {keys[0][c] for c in chunks if c >= 0}
        for chunk, ids in zip(chunks, found, strict=True):
            stored = [] if chunk < 0 else table[source[chunk]].tolist()
            assert ids == ([c for c in stored if c >= 0 and keys[1][c] not in touched] + [-1, -1])[:2]


@pytest.mark.parametrize("old", [{"sequence_chunks": 8, "shard_sequences": 64}, {"sequence_chunks": 2}])
def test_a_table_that_was_made_for_sequences_serves_any(tmp_path: Path, old: dict[str, int]) -> None:
    """Its rows merely lack more: what was in the sequences of then."""
    tokens = write_tokens(tmp_path / "t", [[[7] * n for n in (30, 7, 12, 3, 25)]], write_fake_tokenizer(tmp_path / "k"))
    chunks = write_chunks(tmp_path / "c", tokens, M)
    store = open_chunk_store(chunks)
    documents = store.documents(np.arange(store.num_chunks))
    table = np.full((store.num_chunks, 5), -1)
    for row in range(store.num_chunks):
        start = row // old["sequence_chunks"] * old["sequence_chunks"]
        touched = documents[start : start + old["sequence_chunks"]]
        found = np.flatnonzero(~np.isin(documents, touched))[:5]
        table[row, : len(found)] = found
    made = {"candidates": 50, "rerank": "none", "max_overlap_tokens": None}
    opened = open_neighbor_table(write_neighbors(tmp_path / "n", chunks, chunks, table, **old, **made), store, store)
    opened.verify()
    assert opened.exclude == "documents" and np.array_equal(opened.rows(np.arange(store.num_chunks)), table)
    for length in (1, old["sequence_chunks"], 3):
        data = RetroDataset(store, store, opened, sequence_length=length * M, num_neighbors=2, pad_id=PAD)
        batch = data.__getitems__(np.arange(len(data)))
        for sequence, ids in zip(batch.chunk_ids_BL, data.neighbor_ids(batch.chunk_ids_BL, 2), strict=True):
            assert not np.isin(documents[ids[ids >= 0]], documents[sequence[sequence >= 0]]).any()
        if length == old["sequence_chunks"]:  # in those sequences nothing more is dropped
            real = batch.chunk_ids_BL[batch.chunk_ids_BL >= 0]
            found = data.neighbor_ids(batch.chunk_ids_BL, 2)[batch.chunk_ids_BL >= 0]
            assert np.array_equal(found, table[real, :2]) and data.shortage().excluded == 0
