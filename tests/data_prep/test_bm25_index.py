"""BM25 over a base: extended, and with chunks removed; the bytes of an index made from scratch."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from data_prep.bm25_index import BM25IndexStage
from data_prep.build_index import extend_index_stage, remove_rows_stage
from data_prep.runner import run_stage
from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactMismatchError
from retro.config.prep_index import Bm25Config, IndexConfig
from retro.data.chunk_store import ChunkStore, open_chunk_store
from tests.data_prep.prepared import prepare

CONFIG = IndexConfig(bm25=Bm25Config(shard_chunks=30, max_document_frequency=0.5))


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("corpus"))["train"]


def _files(folder: Path) -> dict[str, str]:
    return {entry["name"]: entry["sha256"] for entry in open_manifest(folder).all_files()}


def _artifact(folder: Path, chunks: Path, fingerprint: str, spans: dict[int, int], rows: int | None = None) -> Path:
    """A copy of a chunks artifact with other spans, or with the first rows only."""
    import json
    import shutil

    from retro.artifacts.manifest import describe_file

    shutil.copytree(chunks, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["fingerprint"] = fingerprint
    for entry in manifest["inputs"].values():
        entry["path"] = os.path.relpath(os.path.normpath(chunks / entry["path"]), folder)
    assert len(manifest["shards"]) == 1
    shard = manifest["shards"][0]
    if rows is not None:
        shard["rows"] = rows
    for part in ("starts", "documents", "spans"):
        path = folder / f"{part}-{shard['name']}.npy"
        array = np.load(path)[:rows]
        if part == "spans":
            for row, span in spans.items():
                array[row] = span
        np.save(path, array)
    shard["files"] = [describe_file(folder / entry["name"]) for entry in shard["files"]]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_an_extended_index_has_the_bytes_of_one_from_scratch(chunks: Path, tmp_path: Path) -> None:
    total = open_chunk_store(chunks).num_chunks
    first = _artifact(tmp_path / "first", chunks, "a" * 16, {}, rows=60)
    base = run_stage(BM25IndexStage(CONFIG, first), tmp_path, progress=False)
    extended = run_stage(extend_index_stage(base, chunks), tmp_path, progress=False)
    scratch = run_stage(BM25IndexStage(CONFIG, chunks), tmp_path, progress=False)
    assert extended != scratch and _files(extended) == _files(scratch)
    assert open_manifest(extended).stats == open_manifest(scratch).stats and open_manifest(extended).rows == total
    for name in ("terms-00000.npy", "counts-00001.npy"):
        assert os.path.samefile(base / name, extended / name)
    assert _files(base)["weights-00000.npy"] != _files(extended)["weights-00000.npy"]


def test_removed_chunks_leave_the_index_of_the_redacted_chunks(chunks: Path, tmp_path: Path) -> None:
    store = open_chunk_store(chunks)
    documents = store.documents(np.arange(store.num_chunks))
    gone = np.flatnonzero(np.isin(documents, [1, 4, int(documents[-1])]))
    redacted = _artifact(tmp_path / "redacted", chunks, "b" * 16, {int(row): 0 for row in gone})
    assert ChunkStore(redacted).removed(gone).all()
    base = run_stage(BM25IndexStage(CONFIG, chunks), tmp_path, progress=False)
    folder = run_stage(remove_rows_stage(base, redacted), tmp_path, progress=False)
    scratch = run_stage(BM25IndexStage(CONFIG, redacted), tmp_path, progress=False)
    assert _files(folder) == _files(scratch) != _files(base)
    assert open_manifest(folder).stats == open_manifest(scratch).stats
    assert open_manifest(folder).stats["postings"] < open_manifest(base).stats["postings"]


def test_a_base_of_something_else_is_refused(chunks: Path, tmp_path: Path) -> None:
    base = run_stage(BM25IndexStage(CONFIG, chunks), tmp_path, progress=False)
    other = IndexConfig(bm25=Bm25Config(k1=2.0))
    with pytest.raises(ArtifactMismatchError, match="a base must have the same options"):
        BM25IndexStage(other, chunks, base)
    shorter = _artifact(tmp_path / "shorter", chunks, "c" * 16, {}, rows=60)
    with pytest.raises(ArtifactMismatchError, match="at most 60 chunks"):
        extend_index_stage(base, shorter)
    redacted = _artifact(tmp_path / "redacted", chunks, "d" * 16, {3: 0})
    with pytest.raises(ArtifactMismatchError, match="chunks of it were removed since"):
        run_stage(extend_index_stage(base, redacted), tmp_path, progress=False)
    changed = _artifact(tmp_path / "changed", chunks, "e" * 16, {0: 2})
    with pytest.raises(ArtifactMismatchError, match="found another content in row 0"):
        run_stage(extend_index_stage(base, changed), tmp_path, progress=False)
