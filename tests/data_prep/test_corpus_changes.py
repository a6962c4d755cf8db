"""A corpus that changes: while it is read (an error, nothing committed), and between two runs (said in one line)."""

import json
import os
import shutil
import sys

import pyarrow
import pyarrow.parquet
import pytest

from data_prep.corpus_changes import corpus_change, read_corpus_files
from data_prep.ingest import IngestStage
from data_prep.readers.hashing import FileGuard, FileHasher
from data_prep.readers.huggingface import HuggingFaceReader
from data_prep.readers.jsonl import JsonlReader
from data_prep.readers.parquet import ParquetReader
from data_prep.readers.python_docs.reader import PythonDocsReader
from data_prep.readers.text_folder import TextFolderReader
from data_prep.runner import run_stage, shard_records
from retro.config.errors import ArtifactError, ArtifactMismatchError
from retro.config.prep import (
    HuggingFaceConfig,
    IngestConfig,
    JsonlConfig,
    ParquetConfig,
    PythonDocsConfig,
    SplitConfig,
    TextFolderConfig,
)
from retro.data.document import iter_documents
from tests.data_prep.corpora import read_all, write_lines


def stage(folder, **options):
    return IngestStage(IngestConfig(reader="jsonl", jsonl=JsonlConfig(folder=str(folder)), **options))


def run(made, root):
    return run_stage(made, root, progress=False)


# --- while it is read


def altered(path):
    """Another content of the same size, as an editor would write it."""
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(1, 1))


def longer(path):
    with open(path, "ab") as file:
        file.write(b'{"text": "one more"}\n')


CHANGES = {"altered": altered, "longer": longer, "gone": os.unlink, "empty": lambda path: path.write_bytes(b"")}


def jsonl_reader(folder):
    write_lines(folder / "a.jsonl", [{"text": f"text {i}"} for i in range(2000)])
    return JsonlReader(JsonlConfig(folder=str(folder)), piece_bytes=1000), folder / "a.jsonl"


def packed_reader(folder):
    path = write_lines(folder / "a.jsonl", [{"text": f"text {i}"} for i in range(20)], ".gz")
    return JsonlReader(JsonlConfig(folder=str(folder))), path


def parquet_reader(folder):
    folder.mkdir()
    table = pyarrow.table({"text": [f"text {i}" for i in range(3000)]})
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=1000)
    return ParquetReader(ParquetConfig(folder=str(folder)), piece_bytes=1), folder / "a.parquet"


def text_reader(folder):
    folder.mkdir()
    (folder / "a.txt").write_text("some text")
    return TextFolderReader(TextFolderConfig(folder=str(folder))), folder / "a.txt"


def hub_reader(folder):
    write_lines(folder / "train.jsonl", [{"text": f"text {i}"} for i in range(20)])
    reader = HuggingFaceReader(HuggingFaceConfig(path=str(folder)))
    reader.identity()
    return reader, folder / "train.jsonl"


READERS = [jsonl_reader, packed_reader, parquet_reader, text_reader, hub_reader]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", READERS)
def test_a_file_that_changes_before_its_piece_is_read(tmp_path, make, change):
    reader, path = make(tmp_path / "c")
    pieces = reader.pieces()
    read = [record for piece in pieces for record in reader.read(piece)]
    assert read  # unchanged it can be read
    CHANGES[change](path)
    with pytest.raises(
        ArtifactMismatchError, match=r"the corpus changed while it was read \(expected .* found"
    ) as caught:
        list(reader.read(pieces[-1]))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", [jsonl_reader, packed_reader, parquet_reader])
def test_a_file_that_changes_while_its_piece_is_read(tmp_path, make, change):
    reader, path = make(tmp_path / "c")
    records = reader.read(reader.pieces()[0])
    next(records)
    CHANGES[change](path)
    with pytest.raises(ArtifactMismatchError, match="the corpus changed while it was read"):
        list(records)


@pytest.mark.parametrize("make", READERS)
def test_a_file_that_is_touched_or_copied_has_not_changed(tmp_path, make, monkeypatch):
    reader, path = make(tmp_path / "c")
    pieces = reader.pieces()
    before = [record for piece in pieces for record in reader.read(piece)]
    shutil.copy(path, tmp_path / "copy")
    os.replace(tmp_path / "copy", path)
    os.utime(path, ns=(7, 7))
    assert [record for piece in pieces for record in reader.read(piece)] == before
    scans = []
    monkeypatch.setattr("data_prep.readers.hashing.scan", lambda *a: scans.append(a))
    assert [record for piece in pieces for record in reader.read(piece)] == before
    assert scans == []  # and it is read a second time once only


def test_sources_that_change_while_they_are_read(tmp_path, monkeypatch):
    package = tmp_path / "oddly_named"
    package.mkdir()
    (package / "__init__.py").write_text('"""' + "What this package is about. " * 10 + '"""\n')
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    reader = PythonDocsReader(PythonDocsConfig(packages=("oddly_named",), standard_library=False))
    (piece,) = reader.pieces()
    assert len(list(reader.read(piece))) == 1
    (package / "more.py").write_text("x = 1\n")
    del reader.__dict__["packages"]  # as in a worker
    with pytest.raises(ArtifactMismatchError, match="the sources of oddly_named changed while they were read"):
        list(reader.read(piece))


def test_nothing_wrong_is_committed_and_the_next_run_goes_on(tmp_path):
    for name in "ab":
        write_lines(tmp_path / "c" / f"{name}.jsonl", [{"text": f"{name} {i}"} for i in range(50)])
    clean = run(stage(tmp_path / "c", piece_bytes=100), tmp_path / "clean")
    broken = stage(tmp_path / "c", piece_bytes=100)
    kept = (tmp_path / "c" / "b.jsonl").read_bytes()
    longer(tmp_path / "c" / "b.jsonl")
    with pytest.raises(ArtifactMismatchError, match=r"ingest, shard .*b\.jsonl: the corpus changed"):
        run(broken, tmp_path / "out")
    folder = tmp_path / "out" / broken.folder_name()
    assert not (folder / "manifest.json").exists()
    done = shard_records(folder)
    assert 0 < len(done) < len(broken.plan())
    (tmp_path / "c" / "b.jsonl").write_bytes(kept)
    again = run(stage(tmp_path / "c", piece_bytes=100), tmp_path / "out")
    assert again.name == clean.name
    files = [path.relative_to(clean) for path in clean.rglob("*") if path.is_file()]
    assert all((clean / name).read_bytes() == (again / name).read_bytes() for name in files)


def test_a_file_that_is_written_while_it_is_hashed(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "x"}])
    from data_prep.readers import hashing

    scan = hashing.scan

    def slow_scan(*arguments):
        found = scan(*arguments)
        longer(path)
        return found

    monkeypatch.setattr(hashing, "scan", slow_scan)
    with pytest.raises(ArtifactError, match=r"a\.jsonl: changed while it was hashed"):
        FileHasher().describe([("a.jsonl", path)], 1 << 62)


def test_a_file_that_cannot_be_read(tmp_path):
    path = write_lines(tmp_path / "c" / "a.jsonl", [{"text": "x"}])
    guard, state = FileGuard(), [path.stat().st_size, 0, "0" * 64]
    with pytest.raises(ArtifactMismatchError):
        guard.check(path, state)
    with pytest.raises(ArtifactError, match=r"b\.jsonl: cannot be read \(No such file"):
        FileHasher().describe([("b.jsonl", tmp_path / "b.jsonl")], 1 << 62)


# --- between two runs


def told(folder, root, **options):
    made = stage(folder, **options)
    return made.corpus_change(root)


def test_what_has_changed_is_said(tmp_path):
    corpus, root = tmp_path / "c", tmp_path / "out"
    for name in "abcdef":
        write_lines(corpus / f"{name}.jsonl", [{"text": name}])
    assert told(corpus, root) is None
    first = run(stage(corpus), root)
    assert [name for name, _ in read_corpus_files(first / "corpus.jsonl.zst")] == [f"{name}.jsonl" for name in "abcdef"]
    assert told(corpus, root) is None  # finished: nothing to say
    for name in "abcd":
        write_lines(corpus / f"{name}.jsonl", [{"text": f"other {name}"}])
    (corpus / "e.jsonl").unlink()
    write_lines(corpus / "new.jsonl", [{"text": "new"}])
    line = told(corpus, root)
    assert line == (
        f"ingest: the corpus is not the one of {first.name}, which stays as it is: 1 files added (new.jsonl), "
        "1 files removed (e.jsonl), 4 files changed (a.jsonl, b.jsonl, c.jsonl, ...)"
    )
    # Another question about the corpus is not a change of the corpus.
    assert told(corpus, root, split=SplitConfig(seed=3)) is None
    second = run(stage(corpus), root)
    longer(corpus / "f.jsonl")
    os.utime(first / "manifest.json", ns=(1, 1))
    assert second.name in told(corpus, root) and "1 files changed (f.jsonl)" in told(corpus, root)
    assert told(corpus, tmp_path / "elsewhere") is None


def test_a_damaged_earlier_artifact_is_no_reason_to_stop(tmp_path):
    corpus, root = tmp_path / "c", tmp_path / "out"
    path = write_lines(corpus / "a.jsonl", [{"text": "x"}])
    first = run(stage(corpus), root)
    longer(path)
    (first / "corpus.jsonl.zst").unlink()
    assert "bytes was" in told(corpus, root)
    (first / "manifest.json").write_text("{")
    assert told(corpus, root) is None


def test_a_data_set_with_another_commit(tmp_path, monkeypatch):
    class Made:
        name, kind = "ingest", "documents"

        def __init__(self, revision):
            self.config = {"corpus": {"hub": "a/b", "revision": revision}}

        def folder_name(self):
            return f"ingest-{self.config['corpus']['revision']}"

    folder = tmp_path / "ingest-1"
    folder.mkdir()
    manifest = {
        "kind": "documents",
        "stage": "ingest",
        "stage_version": 2,
        "fingerprint": "1",
        "config": Made("1").config,
        "inputs": {},
        "shards": [],
        "files": [],
        "stats": {},
        "format": 1,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert corpus_change(Made("2"), [], tmp_path).endswith("which stays as it is: revision was '1', is '2'")


# --- the cache of hashes


def test_the_cache_is_written_file_by_file_and_survives_a_torn_line(tmp_path):
    corpus, cache = tmp_path / "c", tmp_path / "cache" / "hashes.jsonl"
    for name in "abc":
        write_lines(corpus / f"{name}.jsonl", [{"text": name}])
    identity = JsonlReader(JsonlConfig(folder=str(corpus)), hasher=FileHasher(cache)).identity()
    lines = [line for line in cache.read_text().splitlines() if line]
    assert len(lines) == 3
    cache.write_text("\n".join(lines)[:-5])  # killed while it wrote the last line
    again = JsonlReader(JsonlConfig(folder=str(corpus)), hasher=FileHasher(cache)).identity()
    assert again == identity
    assert len(FileHasher(cache)._load()) == 3


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    corpus = tmp_path / "c"
    write_lines(corpus / "a.jsonl", [{"text": "x"}])
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file" / "hashes.jsonl", tmp_path):  # below a file; a folder
        records, _ = read_all(JsonlReader(JsonlConfig(folder=str(corpus)), hasher=FileHasher(cache)))
        assert len(records) == 1


def test_documents_of_the_changed_corpus_are_read(tmp_path):
    path = write_lines(tmp_path / "c" / "a.jsonl", [{"text": "x"}])
    run(stage(tmp_path / "c"), tmp_path / "out")
    longer(path)
    assert [d.text for d in iter_documents(run(stage(tmp_path / "c"), tmp_path / "out"))] == ["x", "one more"]
