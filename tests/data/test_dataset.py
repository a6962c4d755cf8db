"""RetroDataset against a slow, position by position reference, and its controls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ConfigError
from retro.data.batch import RetroBatch
from retro.data.chunk_store import open_chunk_store
from retro.data.dataset import RetroDataset
from retro.data.loader import iter_batches
from retro.data.neighbor_table import open_neighbor_table
from retro.data.text_dataset import derange
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

M, L, K, R, KEEP = 8, 4, 3, 16, 9
N = M * L


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> TinyRelease:
    return build_tiny_release(tmp_path_factory.mktemp("tiny"), chunk_length=M, keep=KEEP)


def make(release: TinyRelease, **options: object) -> RetroDataset:
    store, table = release.open()
    return RetroDataset(store, store, table, **{"sequence_length": N, "num_neighbors": K, "pad_id": PAD, **options})  # type: ignore[arg-type]


def reference(release: TinyRelease, sample: int, score_last: bool) -> dict[str, np.ndarray]:
    """One sequence, one position at a time, from the documents and the table alone."""
    order = np.load(release.tokens / "order.npy").tolist()
    chunks = []  # (document, start in the document)
    for document in order:
        chunks += [(document, s) for s in range(0, len(release.documents[document]) + 2, M)]
    table = np.load(release.neighbors / "ids-00000.npy")

    def text(document: int) -> list[int]:
        return [BOS, *release.documents[document], EOS]

    tokens, targets, scored = np.full(N, PAD), np.full(N, PAD), np.zeros(N, bool)
    neighbors, mask = np.full((L, K, R), PAD), np.zeros((L, K, R), bool)
    ids = [sample * L + u if sample * L + u < len(chunks) else -1 for u in range(L)]
    for u, chunk in enumerate(ids):
        if chunk < 0:
            continue
        document, start = chunks[chunk]
        for i in range(M):
            if start + i < len(text(document)):
                tokens[u * M + i] = text(document)[start + i]
            if start + i + 1 < len(text(document)):
                targets[u * M + i] = text(document)[start + i + 1]
                scored[u * M + i] = score_last or u * M + i < N - 1
    for u, chunk in enumerate(ids):
        if chunk < 0:
            continue
        document, start = chunks[chunk]
        followed = start + M < len(text(document))  # chunk u + 1 exists and is the same document's
        served = range((u + 1) * M - 1, min((u + 2) * M - 1, N))
        if not (followed and any(scored[p] for p in served)):
            continue
        touched = {chunks[c][0] for c in ids if c >= 0}
        allowed = [c for c in table[chunk].tolist() if c >= 0 and chunks[c][0] not in touched]
        for j, found in enumerate(allowed[:K]):
            other, first = chunks[found]
            run = text(other)[first : first + R]
            neighbors[u, j, : len(run)] = run
            mask[u, j, : len(run)] = True
    rows = L if score_last else L - 1  # the last chunk's neighbors would serve the last position only
    assert not mask[rows:].any()
    return {
        "tokens_BN": tokens,
        "targets_BN": targets,
        "loss_mask_BN": scored,
        "neighbors_BLKR": neighbors[:rows],
        "neighbor_mask_BLKR": mask[:rows],
        "chunk_ids_BL": np.array(ids),
    }


@pytest.mark.parametrize("score_last", [False, True])
def test_every_field_equals_the_slow_reference(release: TinyRelease, score_last: bool) -> None:
    data = make(release, score_last_position=score_last)
    samples = np.random.default_rng(0).permutation(len(data))
    batch = data.__getitems__(samples.tolist())
    assert batch.sample_ids_B.tolist() == samples.tolist() and len(batch) == len(data)
    for row, sample in enumerate(samples.tolist()):
        for name, expected in reference(release, sample, score_last).items():
            assert np.array_equal(getattr(batch, name)[row], expected), (name, sample)
        one = data[sample]
        assert all(
            np.array_equal(getattr(one, n)[0], array[row]) for n, array in vars(batch).items() if array is not None
        )
    assert batch.tokens_BN.dtype == batch.targets_BN.dtype == np.int32
    assert batch.loss_mask_BN.dtype == bool and batch.neighbor_mask_BLKR is not None
    assert batch.neighbor_mask_BLKR.any() and not batch.neighbor_mask_BLKR.all()


def test_begins_of_documents(release: TinyRelease) -> None:
    data = make(release, isolate_documents=True)
    batch = data.__getitems__(np.arange(len(data)))
    usual = make(release).__getitems__(np.arange(len(data)))
    assert usual.document_starts_BN is None and usual.chunk_ends_BL is None and batch.chunk_ends_BL is None
    assert np.array_equal(batch.tokens_BN, usual.tokens_BN)
    assert np.array_equal(batch.neighbors_BLKR, usual.neighbors_BLKR)  # type: ignore[arg-type]
    assert batch.document_starts_BN is not None and batch.document_starts_BN.dtype == np.int32
    several = 0
    for starts, chunks in zip(batch.document_starts_BN.tolist(), batch.chunk_ids_BL.tolist(), strict=True):
        owner = [int(data.queries.documents(np.array(c))) if c >= 0 else -1 for c in chunks]
        several += len(set(owner)) > 1
        assert starts == [owner.index(owner[p // M]) * M for p in range(N)]
    assert several > 3


def test_every_token_but_the_first_of_each_document_is_scored_once(release: TinyRelease) -> None:
    data = make(release, score_last_position=True, retrieval="off")
    batch = data.__getitems__(np.arange(len(data)))
    order = np.load(release.tokens / "order.npy").tolist()
    assert batch.targets_BN[batch.loss_mask_BN].tolist() == [
        t for d in order for t in [BOS, *release.documents[d], EOS][1:]
    ]
    training = make(release, retrieval="off").__getitems__(np.arange(len(data)))
    assert not training.loss_mask_BN[:, -1].any()
    assert np.array_equal(training.loss_mask_BN[:, :-1], batch.loss_mask_BN[:, :-1])


def test_neighbors_of_the_last_chunk_serve_only_the_last_position(release: TinyRelease) -> None:
    samples = np.arange(len(make(release)))
    training = make(release).__getitems__(samples)
    scoring = make(release, score_last_position=True).__getitems__(samples)
    assert training.neighbor_mask_BLKR is not None and scoring.neighbor_mask_BLKR is not None
    assert training.neighbor_mask_BLKR.shape[1] == L - 1 and scoring.neighbor_mask_BLKR[:, L - 1].any()
    assert np.array_equal(training.neighbor_mask_BLKR, scoring.neighbor_mask_BLKR[:, : L - 1])


def test_off_differs_from_on_in_the_neighbors_only(release: TinyRelease) -> None:
    on, off = make(release), make(release, retrieval="off")
    samples = np.arange(len(on))
    a, b = on.__getitems__(samples), off.__getitems__(samples)
    assert b.neighbors_BLKR is None and b.neighbor_mask_BLKR is None
    for name in ("tokens_BN", "targets_BN", "loss_mask_BN", "chunk_ids_BL", "sample_ids_B"):
        assert np.array_equal(getattr(a, name), getattr(b, name))
    without = RetroDataset(on.queries, None, None, sequence_length=N, retrieval="off", pad_id=PAD)
    assert np.array_equal(without.__getitems__(samples).tokens_BN, a.tokens_BN)


def neighbor_documents(data: RetroDataset, chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ids [n, K], documents of them, -1 = none) that the data set gives the chunks [B, L]."""
    useful = chunks >= 0
    ids = data.neighbor_ids(chunks, K)[useful]
    documents = np.where(ids >= 0, data.queries.documents(np.maximum(ids, 0)), -1)
    return ids, documents


def test_shuffled_gives_the_rows_of_other_chunks_and_never_the_sequences_own_documents(release: TinyRelease) -> None:
    data = make(release, retrieval="shuffled", seed=3)
    chunks = np.concatenate([b.chunk_ids_BL for b in iter_batches(data, 4)])
    flat = chunks[chunks >= 0]
    ids, documents = neighbor_documents(data, chunks)
    table = np.load(release.neighbors / "ids-00000.npy")
    own = data.queries.documents(flat)
    dropped = 0
    for i, chunk in enumerate(flat.tolist()):
        source = int(data._exchange[chunk])
        assert source != chunk and own[source] != own[chunk]
        touched = set(own[chunk // L * L : chunk // L * L + L].tolist())
        stored = [c for c in table[source].tolist() if c >= 0]
        allowed = [c for c in stored if int(own[c]) not in touched]
        dropped += len(stored) - len(allowed)
        assert ids[i].tolist() == (allowed + [-1] * K)[:K]
        assert not touched & set(documents[i].tolist())
    assert dropped > 0  # the case is there
    assert sorted(data._exchange.tolist()) == list(range(len(flat)))
    same, other = make(release, retrieval="shuffled", seed=3), make(release, retrieval="shuffled", seed=4)
    assert np.array_equal(same._exchange, data._exchange) and not np.array_equal(other._exchange, data._exchange)
    on, shuffled = make(release)[0], data[0]
    assert np.array_equal(on.tokens_BN, shuffled.tokens_BN) and np.array_equal(on.loss_mask_BN, shuffled.loss_mask_BN)
    assert not np.array_equal(on.neighbors_BLKR, shuffled.neighbors_BLKR)  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [[1, 1], [3, 3, 3], [50, 1, 2, 40, 7], [20, 20], [1] * 500])
def test_derangement_pairs_different_documents_wherever_it_can(sizes: list[int]) -> None:
    documents = np.repeat(np.arange(len(sizes)), sizes)
    for seed in range(5):
        out = derange(documents, seed)
        assert sorted(out.tolist()) == list(range(len(documents)))
        assert (out != np.arange(len(documents))).all()
        assert (documents[out] != documents).all()  # no document has more than half of the chunks


def test_derangement_of_one_document_has_no_fixed_point() -> None:
    assert (derange(np.zeros(6, np.int64), 0) != np.arange(6)).all()
    mostly = np.array([0] * 9 + [1])
    out = derange(mostly, 1)
    assert (out != np.arange(10)).all() and out[9] != 9 and mostly[out[9]] == 0


def test_neighbors_from_another_database_of_the_same_tokenizer(tmp_path: Path) -> None:
    tokenizer = write_fake_tokenizer(tmp_path / "tokenizer")
    queries = write_chunks(tmp_path / "q", write_tokens(tmp_path / "qt", [[[9] * 20]], tokenizer, names="q{}"), M)
    texts = [[[50 + i] * (5 * i + 3) for i in range(6)]]
    database = write_chunks(tmp_path / "d", write_tokens(tmp_path / "dt", texts, tokenizer, names="d{}"), M)
    table = np.array([[0, 4], [5, -1], [1, 2]])
    folder = write_neighbors(tmp_path / "n", queries, database, table)
    q, d = open_chunk_store(queries), open_chunk_store(database)
    data = RetroDataset(q, d, open_neighbor_table(folder, q, d), sequence_length=24, num_neighbors=2, pad_id=PAD)
    data.verify()
    batch = data[0]
    assert batch.neighbors_BLKR is not None and batch.neighbor_mask_BLKR is not None
    expected, mask = d.gather_neighbors(table[:2], PAD)
    assert np.array_equal(batch.neighbors_BLKR[0, :2], expected)
    assert np.array_equal(batch.neighbor_mask_BLKR[0, :2], mask)
    assert not batch.neighbor_mask_BLKR[0, 2:].any()

    foreign = write_fake_tokenizer(tmp_path / "foreign", vocab_size=299)
    other = write_chunks(tmp_path / "o", write_tokens(tmp_path / "ot", texts, foreign, names="d{}"), M)
    folder = write_neighbors(tmp_path / "on", queries, other, table)
    o = open_chunk_store(other)
    with pytest.raises(ArtifactMismatchError, match="tokenize both with one tokenizer"):
        RetroDataset(q, o, open_neighbor_table(folder, q, o), sequence_length=24, num_neighbors=2)


def test_options_that_do_not_fit_are_refused(release: TinyRelease) -> None:
    store, table = release.open()
    with pytest.raises(ConfigError, match="sequence_length: expected a multiple of the chunk length 8, found 30"):
        make(release, sequence_length=30)
    for wrong in (0, KEEP + 1):
        with pytest.raises(ConfigError, match=f"num_neighbors: expected 1 to {KEEP}, .* found {wrong}"):
            make(release, num_neighbors=wrong)
    with pytest.raises(ConfigError, match="needs a database and a neighbor table"):
        RetroDataset(store, store, None, sequence_length=N)
    with pytest.raises(ConfigError, match="needs a database and a neighbor table"):
        RetroDataset(store, None, table, sequence_length=N)
    with pytest.raises(ConfigError, match="retrieval: expected"):
        make(release, retrieval="yes")
    with pytest.raises(ConfigError, match="retrieved_length"):
        make(release, retrieved_length=0)
    with pytest.raises(ConfigError, match="seed"):
        make(release, seed=-1)
    data = make(release)
    for wrong in (-1, len(data)):
        with pytest.raises(IndexError, match="sequences"):
            data.__getitems__([0, wrong])


def test_one_chunk_has_nobody_to_exchange_neighbors_with(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "t", [[[5]]], write_fake_tokenizer(tmp_path / "k"))
    chunks = write_chunks(tmp_path / "c", tokens, M)
    folder = write_neighbors(tmp_path / "n", chunks, chunks, np.array([[-1]]))
    store = open_chunk_store(chunks)
    table = open_neighbor_table(folder, store, store)
    data = RetroDataset(store, store, table, sequence_length=5 * M, num_neighbors=1, pad_id=PAD)
    assert len(data) == 1 and data[0].chunk_ids_BL.tolist() == [[0, -1, -1, -1, -1]]
    with pytest.raises(ConfigError, match="at least two chunks"):
        RetroDataset(store, store, table, sequence_length=M, num_neighbors=1, retrieval="shuffled")


def test_padding_is_the_tokenizers_unless_said_otherwise(tmp_path: Path) -> None:
    # Later documents of a sequence see the padding, so training and evaluation must pad alike.
    tokens = write_tokens(tmp_path / "t", [[[5], [6]]], write_fake_tokenizer(tmp_path / "k", pad_id=9))
    store = open_chunk_store(write_chunks(tmp_path / "c", tokens, M))
    data = RetroDataset(store, None, None, sequence_length=2 * M, retrieval="off")
    assert set(data[0].tokens_BN.ravel().tolist()) == {BOS, 5, 6, EOS, 9}
    given = RetroDataset(store, None, None, sequence_length=2 * M, retrieval="off", pad_id=7)
    assert set(given[0].tokens_BN.ravel().tolist()) == {BOS, 5, 6, EOS, 7}


def test_verify_reports_what_only_a_whole_scan_finds(tmp_path: Path) -> None:
    release = build_tiny_release(tmp_path, chunk_length=M, keep=KEEP)
    data = make(release)
    data.verify()
    path = release.neighbors / "ids-00000.npy"
    table = np.load(path)
    table[5, 0] = 5
    np.save(path, table)
    with pytest.raises(ArtifactCorruptError, match="row 5 has a neighbor of its own document"):
        make(release).verify()


def test_as_tensors(release: TinyRelease) -> None:
    batch = make(release, isolate_documents=True).__getitems__([1, 0])
    tensors = batch.to_torch("cpu")
    assert len(tensors) == 2 and batch.document_starts_BN is not None
    for name, array in vars(batch).items():
        tensor = getattr(tensors, name)
        if array is None:
            assert tensor is None and name == "chunk_ends_BL"
            continue
        assert tensor.dtype == (torch.bool if array.dtype == bool else torch.int64)
        assert np.array_equal(tensor.numpy(), array)
    off = make(release, retrieval="off")[0].to_torch()
    assert off.neighbors_BLKR is None and off.neighbor_mask_BLKR is None


def test_iter_batches_gives_each_sequence_once_in_order(release: TinyRelease) -> None:
    data = make(release, retrieval="off")
    assert [i for b in iter_batches(data, 4) for i in b.sample_ids_B] == list(range(len(data)))
    assert [len(b) for b in iter_batches(data, 4, limit=6)] == [4, 2]


def test_data_modules_import_neither_torch_nor_faiss() -> None:
    folder = Path(__file__).parents[2] / "retro" / "data"
    modules = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    assert "loader" in modules
    code = "import sys\n" + "".join(f"import retro.data.{m}\n" for m in modules)
    code += "assert not {'torch', 'faiss', 'transformers', 'sentencepiece'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_batch_cannot_be_changed_by_assignment(release: TinyRelease) -> None:
    batch: RetroBatch = make(release)[0]
    with pytest.raises(AttributeError):
        batch.tokens_BN = batch.targets_BN  # type: ignore[misc]
