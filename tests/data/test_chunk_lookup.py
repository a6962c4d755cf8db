"""Chunks found by document key and offset, and chunks that were removed, against plain dictionaries."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import chunk_lookup
from data_prep.chunk_lookup import write_lookup
from retro.artifacts.manifest import MANIFEST_NAME, describe_file
from retro.config.errors import ArtifactCorruptError
from retro.data import chunk_store
from retro.data.chunk_store import ChunkStore, open_chunk_store
from retro.data.document import document_key
from retro.data.sharded_array import open_sharded
from tests.data.builders import PAD, write_chunks, write_fake_tokenizer, write_tokens


def record_again(folder: Path, more: list[str] | None = None) -> None:
    """Make the manifest agree with the files, as the stage that wrote them would; more: files of the closing step."""
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    for shard in manifest["shards"]:
        shard["files"] = [describe_file(folder / entry["name"]) for entry in shard["files"]]
    manifest["files"] += [describe_file(folder / name) for name in more or []]
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))


def build(root: Path, lengths: list[int], chunk_length: int, shards: int, lookup: bool) -> ChunkStore:
    documents = [[5 + i % 200] * length for i, length in enumerate(lengths)]
    parts = [[documents[i] for i in part] for part in np.array_split(np.arange(len(documents)), shards)]
    tokens = write_tokens(root / "tokens", parts, write_fake_tokenizer(root / "tokenizer"))
    folder = write_chunks(root / "chunks", tokens, chunk_length, shards=shards)
    if lookup:
        store = open_chunk_store(folder)
        records = json.loads((folder / MANIFEST_NAME).read_text())["shards"]
        write_lookup(open_sharded(folder, "documents", records, np.int64), store.tokens, folder, memory_bytes=500)
        record_again(folder, ["lookup_keys.npy", "lookup_chunks.npy"])
    return open_chunk_store(folder)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    chunk_length=st.integers(1, 9),
    shards=st.integers(1, 3),
    lookup=st.booleans(),
    block=st.integers(1, 20),
    data=st.data(),
)
def test_find_is_a_dictionary_of_places(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    chunk_length: int,
    shards: int,
    lookup: bool,
    block: int,
    data: st.DataObject,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_store, "_BLOCK", block)
        patch.setattr(chunk_lookup, "_BLOCK", block)
        store = build(tmp_path_factory.mktemp("find"), lengths, chunk_length, shards, lookup)
        store.verify()
        names = [document_key(f"doc-{i}") for i in range(len(lengths))] + [document_key("nobody"), 0, 2**64 - 1]
        places: dict[tuple[int, int], int] = {}
        counts: dict[int, int] = {}
        for chunk in range(store.num_chunks):
            name = names[int(store.documents(np.array([chunk]))[0])]
            places[name, counts.get(name, 0) * chunk_length] = chunk
            counts[name] = counts.get(name, 0) + 1
        asked = list(places) + data.draw(
            st.lists(st.tuples(st.sampled_from(names), st.integers(-5, 60) | st.just(2**63 - 1)), max_size=30)
        )
        keys = np.array([key for key, _ in asked], dtype=np.uint64)
        offsets = np.array([offset for _, offset in asked], dtype=np.int64)
        assert store.find(keys, offsets).tolist() == [places.get(place, -1) for place in asked]
        assert store.find(keys[:0], offsets[:0]).shape == (0,)


def remove(store: ChunkStore, document: int) -> list[int]:
    """Set the spans of a document's chunks to 0, in the files; returns the chunks."""
    ids = np.arange(store.num_chunks)
    gone = ids[store.documents(ids) == document].tolist()
    first = 0
    for path in sorted(store.folder.glob("spans-*.npy")):
        spans = np.load(path)
        spans[[i - first for i in gone if first <= i < first + len(spans)]] = 0
        first += len(spans)
        np.save(path, spans)
    record_again(store.folder)
    return gone


@pytest.mark.parametrize("lookup", [False, True], ids=["computed", "stored"])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_removed_chunk_is_padding_and_is_not_found(tmp_path: Path, shards: int, lookup: bool) -> None:
    before = build(tmp_path, [20, 30, 7, 1, 16], 8, shards, lookup)
    ids = np.arange(before.num_chunks)
    keys, starts = before.document_keys(ids), before.starts(ids)
    offsets = starts - before.tokens.document_offsets[before.documents(ids)]
    whole, _ = before.gather_neighbors(ids, PAD)
    gone = remove(before, 1)
    assert len(gone) == 4
    store = open_chunk_store(before.folder)
    store.verify()
    expected = np.isin(ids, gone)
    assert np.array_equal(store.removed(ids), expected) and not before.removed(np.zeros((0, 2), np.int64)).any()
    assert store.removed(ids.reshape(1, -1)).shape == (1, len(ids))
    for length in (8, 16):
        tokens, mask = store.gather_neighbors(ids, PAD, length)
        assert (tokens[expected] == PAD).all() and not mask[expected].any()
        assert mask[~expected].any(axis=1).all()
        assert np.array_equal(tokens[~expected][:, :length], whole[~expected][:, :length])
    assert store.lengths(ids)[expected].tolist() == [0] * 4
    found = store.find(keys, offsets)
    assert np.array_equal(found, np.where(expected, -1, ids))
    with_none, mask = store.gather(np.array([-1, gone[0], 0]), PAD)
    assert not mask[:2].any() and (with_none[:2] == PAD).all()


def test_the_place_of_a_removed_chunk_is_not_read(tmp_path: Path) -> None:
    """Its tokens may be gone with it."""
    store = build(tmp_path, [20, 30], 8, 1, False)
    gone = remove(store, 1)
    path = store.folder / "starts-00000.npy"
    starts = np.load(path)
    starts[gone] = 10**9
    np.save(path, starts)
    record_again(store.folder)
    again = open_chunk_store(store.folder)
    again.verify()
    _, mask = again.gather(np.arange(again.num_chunks), PAD)
    assert not mask[gone].any() and mask.any()


def test_verify_refuses_what_is_neither_a_chunk_nor_removed(tmp_path: Path) -> None:
    store = build(tmp_path, [20, 30, 9], 8, 1, True)
    for name, row, value in (
        ("spans-00000.npy", 2, -1),
        ("lookup_chunks.npy", 1, 3),
        ("lookup_keys.npy", 0, 1),
        ("lookup_keys.npy", 0, 2**64 - 1),
    ):
        path = store.folder / name
        good = np.load(path)
        bad = good.copy()
        bad[row] = value
        np.save(path, bad)
        with pytest.raises(ArtifactCorruptError, match=f"{name.split('-')[0][:6]}.*do not fit the tokens"):
            ChunkStore(store.folder).verify()
        np.save(path, good)
    ChunkStore(store.folder).verify()
