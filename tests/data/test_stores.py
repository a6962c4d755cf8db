"""Token store, chunk store and neighbor table against slow, obvious references."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.chunk import cut_documents
from retro.artifacts.manifest import MANIFEST_NAME, open_manifest, verify_files
from retro.config.errors import ArtifactCorruptError, ArtifactError, ArtifactMismatchError, ArtifactUnfinishedError
from retro.data import token_store
from retro.data.chunk_store import ChunkStore, open_chunk_store
from retro.data.document import document_key
from retro.data.neighbor_table import open_neighbor_table
from retro.data.token_store import open_token_store
from tests.data.builders import (
    BOS,
    EOS,
    PAD,
    TinyRelease,
    build_tiny_release,
    write_chunks,
    write_fake_tokenizer,
    write_neighbors,
    write_tokens,
)


@pytest.fixture(scope="module", params=[1, 3], ids=["one shard", "three shards"])
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyRelease:
    return build_tiny_release(tmp_path_factory.mktemp("tiny"), shards=request.param)


def slow_chunks(release: TinyRelease, length: int) -> list[tuple[int, list[int]]]:
    """(document, all tokens from the chunk's start to the document's end), for every chunk in order."""
    out = []
    for document in np.load(release.tokens / "order.npy").tolist():
        tokens = [BOS, *release.documents[document], EOS]
        out += [(document, tokens[start:]) for start in range(0, len(tokens), length)]
    return out


def test_documents_of_a_group_share_a_key_and_those_without_a_group_do_not(tmp_path: Path) -> None:
    """All documents of a corpus without groups would otherwise exclude one another, and none would have a neighbor."""
    tokenizer = write_fake_tokenizer(tmp_path / "tokenizer")
    groups = ["a", "", "b", "", "a"]
    folder = write_tokens(tmp_path / "tokens", [[[5, 6]] * 3, [[7]] * 2], tokenizer, vocab_size=300, groups=groups)
    keys = np.asarray(open_token_store(folder).group_keys())
    assert keys[0] == keys[4] and len(set(keys.tolist())) == 4


def test_tokens_documents_and_records(release: TinyRelease) -> None:
    store = open_token_store(release.tokens)
    flat = [t for d in release.documents for t in (BOS, *d, EOS)]
    assert store.num_tokens == len(flat) and store.num_documents == len(release.documents)
    assert store.tokens(0, store.num_tokens).tolist() == flat
    for i, document in enumerate(release.documents):
        start, stop = store.document_offsets[i : i + 2]
        assert store.tokens(int(start), int(stop)).tolist() == [BOS, *document, EOS]
        assert store.document_record(i)["id"] == f"doc-{i}"
        assert int(store.document_keys[i]) == document_key(f"doc-{i}")
    for wrong in (-1, len(release.documents)):
        with pytest.raises(IndexError):
            store.document_record(wrong)
    for start, stop in ((-1, 2), (2, 1), (0, store.num_tokens + 1)):
        with pytest.raises(IndexError):
            store.tokens(start, stop)


@pytest.mark.parametrize("length", [1, 7, 50, 100_000])
def test_gather_of_tokens_is_a_slice_that_stops_at_the_shard(release: TinyRelease, length: int) -> None:
    store = open_token_store(release.tokens)
    sizes = [f.stat().st_size // 2 for f in sorted(release.tokens.glob("tokens-*.bin"))]
    ends = np.cumsum(sizes)
    starts = np.random.default_rng(0).permutation(store.num_tokens)
    rows = store.gather(starts, length)
    assert rows.shape == (store.num_tokens, length)
    for start, row in zip(starts.tolist(), rows, strict=True):
        stop = min(start + length, int(ends[np.searchsorted(ends, start, side="right")]))
        expected = store.tokens(start, stop)
        assert np.array_equal(row[: stop - start], expected) and not row[stop - start :].any()
    for wrong in ([-1], [store.num_tokens]):
        with pytest.raises(IndexError):
            store.gather(np.array(wrong), length)


@pytest.mark.parametrize("retrieved", [None, 1, 8, 13, 40])
def test_chunks_and_neighbors_equal_the_slow_reference(release: TinyRelease, retrieved: int | None) -> None:
    store = open_chunk_store(release.chunks)
    reference = slow_chunks(release, 8)
    assert store.num_chunks == len(reference)
    generator = np.random.default_rng(1)
    ids = generator.integers(-1, len(reference), size=(5, 7, 3))
    tokens, mask = store.gather_neighbors(ids, PAD, retrieved)
    length = 16 if retrieved is None else retrieved
    assert tokens.shape == mask.shape == (5, 7, 3, length) and tokens.dtype == np.int32 and mask.dtype == bool
    for place in np.ndindex(*ids.shape):
        expected = reference[ids[place]][1][:length] if ids[place] >= 0 else []
        assert tokens[place].tolist() == expected + [PAD] * (length - len(expected))
        assert mask[place].tolist() == [True] * len(expected) + [False] * (length - len(expected))
    present = np.arange(len(reference))
    assert store.documents(present).tolist() == [d for d, _ in reference]
    assert store.lengths(present).tolist() == [min(8, len(t)) for _, t in reference]
    assert store.document_keys(present).tolist() == [document_key(f"doc-{d}") for d, _ in reference]
    store.verify()


def test_gather_is_the_chunk_alone_and_pads_with_the_id_asked_for(release: TinyRelease) -> None:
    store = open_chunk_store(release.chunks)
    reference = slow_chunks(release, 8)
    tokens, mask = store.gather(np.array([[-1, 0], [len(reference) - 1, -1]]), pad_id=7)
    assert tokens[0, 0].tolist() == [7] * 8 and not mask[0, 0].any() and not mask[1, 1].any()
    for row, chunk in ((tokens[0, 1], reference[0]), (tokens[1, 0], reference[-1])):
        expected = chunk[1][:8]
        assert row.tolist() == expected + [7] * (8 - len(expected))
    empty, none = store.gather(np.zeros((0, 3), np.int64), PAD)
    assert empty.shape == none.shape == (0, 3, 8)


def test_only_minus_one_means_none(release: TinyRelease) -> None:
    store = open_chunk_store(release.chunks)
    for wrong in (-2, store.num_chunks):
        with pytest.raises(IndexError, match="chunk ids: expected -1"):
            store.gather(np.array([0, wrong]), PAD)
        with pytest.raises(IndexError, match="chunk ids: expected -1"):
            store.gather_neighbors(np.array([[-1], [wrong]]), PAD)
    for method in (store.documents, store.document_keys, store.lengths, store.starts, store.spans):
        with pytest.raises(IndexError, match="chunk ids: expected 0"):
            method(np.array([-1]))


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    chunk_length=st.integers(1, 17),
    order=st.randoms(use_true_random=False),
)
def test_every_token_is_in_exactly_one_chunk_of_its_document(
    lengths: list[int], chunk_length: int, order: object
) -> None:
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    documents = list(range(len(lengths)))
    order.shuffle(documents)  # type: ignore[attr-defined]
    starts, owners, spans = cut_documents(
        (numbers := np.array(documents, np.int64)), offsets[numbers], offsets[numbers + 1], chunk_length
    )
    covered = np.zeros(int(offsets[-1]), int)
    for start, owner, span in zip(starts.tolist(), owners.tolist(), spans.tolist(), strict=True):
        assert offsets[owner] <= start < start + span == offsets[owner + 1]
        assert (start - offsets[owner]) % chunk_length == 0
        covered[start : start + min(chunk_length, span)] += 1
    assert (covered == 1).all()
    assert list(dict.fromkeys(owners.tolist())) == documents  # in the order asked for, together
    same = owners[1:] == owners[:-1]
    assert np.array_equal(spans[:-1] > chunk_length, same)


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    chunk_length=st.integers(1, 12),
    retrieved=st.integers(1, 40),
    cut=st.integers(1, 4),
)
def test_the_continuation_never_crosses_a_document(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], chunk_length: int, retrieved: int, cut: int
) -> None:
    # Every token of document i is 4 + i, so that a foreign token shows.
    root = tmp_path_factory.mktemp("cross")
    documents = [[4 + i] * length for i, length in enumerate(lengths)]
    shards = [[documents[i] for i in part] for part in np.array_split(np.arange(len(documents)), cut)]
    tokens = write_tokens(root / "tokens", shards, write_fake_tokenizer(root / "tokenizer"))
    store = open_chunk_store(write_chunks(root / "chunks", tokens, chunk_length, shards=min(cut, len(lengths))))
    ids = np.arange(store.num_chunks)
    found, mask = store.gather_neighbors(ids, PAD, retrieved)
    for i, row, real in zip(ids.tolist(), found, mask, strict=True):
        document = int(store.documents(np.array([i]))[0])
        assert set(row[real].tolist()) <= {BOS, EOS, 4 + document}
        assert (row[~real] == PAD).all() and real.any()
        assert not (np.diff(real.astype(int)) > 0).any()  # one run from the start
    shutil.rmtree(root)


def test_wide_vocabularies_are_kept_whole(tmp_path: Path) -> None:
    documents = [[70_000, 5, 69_999], [65_536]]
    tokens = write_tokens(tmp_path / "tokens", [documents], write_fake_tokenizer(tmp_path / "tok"), vocab_size=70_001)
    store = open_chunk_store(write_chunks(tmp_path / "chunks", tokens, 8))
    assert store.tokens.dtype == np.uint32
    rows, mask = store.gather(np.arange(2), PAD)
    assert rows.dtype == np.int32
    assert sorted(row[real].tolist() for row, real in zip(rows, mask, strict=True)) == sorted(
        [BOS, *d, EOS] for d in documents
    )


def test_stores_travel_to_other_processes_as_paths(release: TinyRelease) -> None:
    store, table = release.open()
    blob = pickle.dumps((store, table))
    assert len(blob) < 2000
    other, other_table = pickle.loads(blob)
    ids = np.arange(store.num_chunks)
    assert np.array_equal(other.gather(ids, PAD)[0], store.gather(ids, PAD)[0])
    assert np.array_equal(other_table.rows(ids), table.rows(ids))
    assert other_table.queries is other


def test_neighbor_rows_and_distances(release: TinyRelease) -> None:
    store, table = release.open()
    ids = np.concatenate([np.load(f) for f in sorted(release.neighbors.glob("ids-*.npy"))])
    where = np.random.default_rng(2).integers(0, len(ids), size=(6, 5))
    assert np.array_equal(table.rows(where), ids[where])
    assert np.array_equal(table.rows(where, 2), ids[where][..., :2])
    assert np.array_equal(table.rows(where[:1, :2]), ids[where[:1, :2]])  # fewer rows than one per shard pays
    far = table.distances(where)
    assert np.array_equal(np.isinf(far), ids[where] < 0) and far.dtype == np.float32
    assert table.k == 4 and table.exclude == "documents" and table.num_rows == store.num_chunks
    for wrong in (-1, len(ids)):
        with pytest.raises(IndexError, match="query chunk ids"):
            table.rows(np.array([wrong]))
    for k in (0, 5):
        with pytest.raises(IndexError, match="neighbors: expected 1 to 4"):
            table.rows(np.array([0]), k)
    table.verify()


# What is refused, and with which words.


def flip(path: Path, array: np.ndarray) -> None:
    """Replace the content of an .npy file, sizes kept: what a checksum would find but opening alone must survive."""
    old = path.stat().st_size
    np.save(path, array)
    assert path.stat().st_size == old


def test_truncated_and_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    release = build_tiny_release(tmp_path)
    for file in ("tokens/tokens-00000.bin", "chunks/starts-00000.npy", "neighbors/ids-00000.npy"):
        path = tmp_path / file
        whole = path.read_bytes()
        path.write_bytes(whole[:-3])
        with pytest.raises(ArtifactCorruptError, match=f"{path.name}: expected {len(whole)} bytes, found"):
            release.open()
        path.unlink()
        with pytest.raises(ArtifactCorruptError, match=f"{path.name}: recorded in the manifest but missing"):
            release.open()
        path.write_bytes(whole)
    release.open()


def test_unfinished_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    release = build_tiny_release(tmp_path)
    with pytest.raises(ArtifactMismatchError, match="expected an artifact of kind 'chunks', found 'tokens'"):
        open_chunk_store(release.tokens)
    with pytest.raises(ArtifactMismatchError, match="expected an artifact of kind 'tokens', found 'chunks'"):
        open_token_store(release.chunks)
    store = open_chunk_store(release.chunks)
    with pytest.raises(ArtifactMismatchError, match="expected an artifact of kind 'neighbors', found 'chunks'"):
        open_neighbor_table(release.chunks, store, store)
    (release.neighbors / MANIFEST_NAME).unlink()
    with pytest.raises(ArtifactUnfinishedError, match="unfinished"):
        open_neighbor_table(release.neighbors, store, store)


def test_a_table_of_other_chunks_is_refused(tmp_path: Path) -> None:
    release = build_tiny_release(tmp_path / "a")
    other = build_tiny_release(tmp_path / "b", seed=9)
    store, foreign = open_chunk_store(release.chunks), open_chunk_store(other.chunks)
    for name, queries, database in (("queries", foreign, store), ("database", store, foreign)):
        with pytest.raises(ArtifactMismatchError, match=f"made for the {name} {foreign.fingerprint}.*run find_neigh"):
            open_neighbor_table(release.neighbors, queries, database)


def test_chunks_of_replaced_tokens_are_refused(tmp_path: Path) -> None:
    release = build_tiny_release(tmp_path / "a")
    other = build_tiny_release(tmp_path / "b", seed=9)
    shutil.rmtree(release.tokens)
    shutil.copytree(other.tokens, release.tokens)
    with pytest.raises(ArtifactMismatchError, match="was made from tokens"):
        open_chunk_store(release.chunks)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("tokens/offsets-00000.npy", "expected rising offsets"),
        ("chunks/starts-00000.npy", "entries that do not fit the tokens"),
        ("chunks/documents-00000.npy", "entries that do not fit the tokens"),
        ("chunks/spans-00000.npy", "entries that do not fit the tokens"),
        ("neighbors/ids-00000.npy", "expected chunk ids from -1 to"),
    ],
)
def test_altered_content_is_refused_before_it_is_used(tmp_path: Path, file: str, message: str) -> None:
    release = build_tiny_release(tmp_path)
    path = tmp_path / file
    array = np.load(path)
    array[len(array) // 2] = 10**6
    flip(path, array)
    with pytest.raises(ArtifactCorruptError, match=message):
        store, table = release.open()
        ids = np.arange(store.num_chunks)
        table.rows(ids)
        store.verify()


def test_altered_starts_and_documents_are_refused_where_they_are_read(tmp_path: Path) -> None:
    release = build_tiny_release(tmp_path)
    for part, read in (
        ("starts", lambda s: s.gather(np.arange(s.num_chunks), PAD)),
        ("documents", lambda s: s.document_keys(np.arange(s.num_chunks))),
    ):
        path = release.chunks / f"{part}-00000.npy"
        good = np.load(path)
        for wrong in (-1, 10**6):
            bad = good.copy()
            bad[3] = wrong
            flip(path, bad)
            with pytest.raises(ArtifactCorruptError, match=f"{part}-.*do not fit the tokens"):
                read(ChunkStore(release.chunks))
        flip(path, good)
    assert not verify_files(release.chunks, open_manifest(release.chunks))


def test_a_neighbor_below_minus_one_is_refused(tmp_path: Path) -> None:
    release = build_tiny_release(tmp_path)
    path = release.neighbors / "ids-00000.npy"
    table = np.load(path)
    table[2, 1] = -2
    flip(path, table)
    with pytest.raises(ArtifactCorruptError, match="found -2 to"):
        release.open()[1].rows(np.array([2]))


@pytest.mark.parametrize("shape", ["type", "shape", "text"])
def test_arrays_of_another_type_or_shape_are_refused(tmp_path: Path, shape: str) -> None:
    release = build_tiny_release(tmp_path)
    path = release.chunks / "starts-00000.npy"
    array = np.load(path)
    if shape == "text":
        path.write_bytes(b"x" * path.stat().st_size)
    else:
        np.save(path, array.astype(np.float64) if shape == "type" else array[:, None])
    manifest = json.loads((release.chunks / MANIFEST_NAME).read_text())
    for entry in manifest["shards"][0]["files"]:  # a manifest that agrees, as a stage with a defect would write it
        entry["bytes"] = (release.chunks / entry["name"]).stat().st_size
    (release.chunks / MANIFEST_NAME).write_text(json.dumps(manifest))
    message = "not a readable array" if shape == "text" else r"starts-00000.npy: expected int64 \[\d+\], found"
    with pytest.raises(ArtifactCorruptError, match=message):
        open_chunk_store(release.chunks)


@pytest.mark.parametrize("exclude", ["documents", "groups"])
def test_verify_finds_a_neighbor_of_the_rows_own_document_or_group(tmp_path: Path, exclude: str) -> None:
    documents = [[5] * 20, [6] * 20, [7] * 20, [8] * 20]
    tokens = write_tokens(
        tmp_path / "t", [documents], write_fake_tokenizer(tmp_path / "k"), groups=["a", "a", "b", "b"]
    )
    chunks = write_chunks(tmp_path / "c", tokens, 8)
    store = open_chunk_store(chunks)
    ids = np.arange(store.num_chunks)
    keys = store.tokens.group_keys() if exclude == "groups" else store.tokens.document_keys
    own = np.asarray(keys[store.documents(ids)])
    table = np.array([[next(c for c in ids if own[c] != own[row]), -1] for row in ids])
    good = write_neighbors(tmp_path / "good", chunks, chunks, table, exclude=exclude)
    open_neighbor_table(good, store, store).verify()
    row = 4
    same = [c for c in ids if own[c] == own[row] and c != row]
    # With groups the neighbor is of another document of the same group.
    table[row, 0] = next(
        c for c in same if exclude == "documents" or store.documents(ids)[c] != store.documents(ids)[row]
    )
    bad = write_neighbors(tmp_path / "bad", chunks, chunks, table, exclude=exclude)
    with pytest.raises(ArtifactCorruptError, match=f"row {row} has a neighbor of its own {exclude[:-1]}"):
        open_neighbor_table(bad, store, store).verify()
    table[row] = [-1, 0]
    hole = write_neighbors(tmp_path / "hole", chunks, chunks, table, exclude=exclude)
    with pytest.raises(ArtifactCorruptError, match="behind a missing one"):
        open_neighbor_table(hole, store, store).verify()
    unknown = write_neighbors(tmp_path / "unknown", chunks, chunks, table, exclude="authors")
    with pytest.raises(ArtifactMismatchError, match="'documents' or 'groups', found 'authors'"):
        open_neighbor_table(unknown, store, store)


def test_a_table_with_too_few_rows_is_refused(tmp_path: Path) -> None:
    release = build_tiny_release(tmp_path)
    store, table = release.open()
    short = table.rows(np.arange(store.num_chunks - 1))
    folder = write_neighbors(tmp_path / "short", release.chunks, release.chunks, short)
    with pytest.raises(ArtifactCorruptError, match=f"expected {store.num_chunks} rows, one per query chunk"):
        open_neighbor_table(folder, store, store)


def test_damaged_records_of_documents_are_refused(tmp_path: Path) -> None:
    release = build_tiny_release(tmp_path)
    path = release.tokens / "docs-00000.jsonl"
    text = path.read_text()
    path.write_text("{" + text[1:].replace('"id"', '"di"', 1))
    with pytest.raises(ArtifactError, match=r"docs-00000\.jsonl:1: not a document record"):
        open_token_store(release.tokens).document_record(0)
    path.write_text(text.replace("\n", " ", 1))
    with pytest.raises(ArtifactError, match="expected 24 lines, found 23"):
        open_token_store(release.tokens).document_record(0)


@pytest.mark.parametrize("flags", [5, 64 << 20])
@pytest.mark.parametrize(
    ("file", "place", "value", "message"),
    [
        ("order.npy", 3, 0, "order.npy: expected every document once"),
        ("order.npy", 3, 24, "order.npy: expected every document once"),
        ("order.npy", 3, -1, "order.npy: expected every document once"),
        ("offsets-00001.npy", 2, 10**6, "expected rising offsets"),
        ("tokens-00001.bin", 7, 300, "expected tokens below 300, found 300"),
    ],
)
def test_verify_of_tokens_reads_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int, file: str, place: int, value: int, message: str
) -> None:
    monkeypatch.setattr(token_store, "_BLOCK", 7)
    monkeypatch.setattr(token_store, "_FLAGS", flags)
    release = build_tiny_release(tmp_path, shards=2)
    open_token_store(release.tokens).verify()
    path = release.tokens / file
    if file.endswith(".bin"):
        tokens = np.fromfile(path, np.uint16)
        tokens[place] = value
        tokens.tofile(path)
    else:
        array = np.load(path)
        array[place] = value
        flip(path, array)
    with pytest.raises(ArtifactCorruptError, match=message):
        open_token_store(release.tokens).verify()


def test_an_order_that_names_no_document_is_refused_where_it_is_read(tmp_path: Path) -> None:
    release = build_tiny_release(tmp_path)
    order = np.load(release.tokens / "order.npy")
    assert open_token_store(release.tokens).read_order(2, 9).tolist() == order[2:9].tolist()
    order[4] = 24
    flip(release.tokens / "order.npy", order)
    store = open_token_store(release.tokens)
    assert store.read_order(5, 24).tolist() == order[5:].tolist()
    with pytest.raises(ArtifactCorruptError, match="expected every document once"):
        store.read_order(0, 5)
