"""Readers: formats, bad content, ids that survive reordering, identity of a corpus."""

import json
import pickle
import random
import shutil

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.readers.base import (
    BROKEN_JSON,
    BROKEN_UTF8,
    CORRUPT_FILE,
    EMPTY_FILE,
    TOO_LONG,
    TRUNCATED_FILE,
    WRONG_TYPE,
    Reject,
    pack,
)
from data_prep.readers.compressed import iter_lines
from data_prep.readers.files import find_files
from data_prep.readers.hashing import FileHasher
from data_prep.readers.huggingface import HuggingFaceReader
from data_prep.readers.jsonl import JsonlReader
from data_prep.readers.parquet import ParquetReader
from data_prep.readers.text_folder import TextFolderReader
from retro.config.errors import ArtifactError, ArtifactMissingError
from retro.config.prep import HuggingFaceConfig, JsonlConfig, ParquetConfig, TextFolderConfig
from tests.data_prep.corpora import COMPRESSIONS, compress, ids, read_all, write_lines

TEXTS = ["first text", "zweiter Text: äöü €", "third\ntext with \u2028 a line separator"]


def jsonl(folder, **options):
    return JsonlReader(JsonlConfig(folder=str(folder), **options))


# --- JSON Lines


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_jsonl_reads_every_compression_alike(tmp_path, suffix):
    write_lines(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS], suffix)
    records, rejects = read_all(jsonl(tmp_path))
    assert [r.fields["text"] for r in records] == TEXTS
    assert [r.fields["id"] for r in records] == [f"a.jsonl{suffix}:{i}" for i in (1, 2, 3)]
    assert rejects == []


def test_jsonl_fields_are_mapped(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"body": "x", "key": 7, "name": "T", "cat": "g", "part": "dev"}])
    config = JsonlConfig(str(tmp_path), text_field="body", id_field="key", title_field="name", group_field="cat")
    records, _ = read_all(JsonlReader(config, split_field="part"))
    assert records[0].fields == {"text": "x", "id": 7, "title": "T", "group": "g", "split": "dev"}


def test_jsonl_ids_do_not_depend_on_other_files_or_their_order(tmp_path):
    for name in ("b", "a"):
        write_lines(tmp_path / "one" / f"{name}.jsonl", [{"text": f"{name}{i}"} for i in range(3)])
    for name in ("a", "0", "b"):  # written in another order, and with one file more that sorts first
        write_lines(tmp_path / "two" / f"{name}.jsonl", [{"text": f"{name}{i}"} for i in range(3)])
    one, two = ids(jsonl(tmp_path / "one")), ids(jsonl(tmp_path / "two"))
    assert one.items() < two.items()
    assert one["b.jsonl:2"] == "b1"


def test_jsonl_explicit_ids_survive_reordering_of_lines(tmp_path):
    records = [{"text": text, "id": f"doc{i}"} for i, text in enumerate(TEXTS)]
    write_lines(tmp_path / "one" / "a.jsonl", records)
    write_lines(tmp_path / "two" / "z.jsonl", records[::-1])
    assert ids(jsonl(tmp_path / "one", id_field="id")) == ids(jsonl(tmp_path / "two", id_field="id"))


def test_large_plain_file_is_cut_without_changing_records(tmp_path):
    records = [{"text": f"{i} " * (i % 40)} for i in range(500)]
    records.insert(250, b"")  # blank lines are not records, but they are counted as lines
    write_lines(tmp_path / "a.jsonl", records)
    whole = jsonl(tmp_path)
    cut = JsonlReader(whole.config, piece_bytes=700)
    assert len(whole.pieces()) == 1 and len(cut.pieces()) > 20
    assert read_all(cut) == read_all(whole)
    assert len(read_all(cut)[0]) == 500


def test_small_files_share_a_piece():
    items = [{"file": str(i)} for i in range(5)]
    pieces = pack(items, [4, 4, 20, 1, 1], target=10)
    assert [[item["file"] for item in piece["items"]] for piece in pieces] == [["0", "1"], ["2"], ["3", "4"]]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "\xff"}', BROKEN_UTF8),
        (b'{"text": "x"', BROKEN_JSON),
        (b"[" * 100_000, BROKEN_JSON),
        (b'["text"]', WRONG_TYPE),
        (b"12", WRONG_TYPE),
    ],
)
def test_jsonl_bad_lines_are_rejected_and_the_rest_is_read(tmp_path, line, reason):
    write_lines(tmp_path / "a.jsonl", [{"text": "before"}, line, {"text": "after"}])
    records, rejects = read_all(jsonl(tmp_path))
    assert [(r.line, r.fields["text"]) for r in records] == [(1, "before"), (3, "after")]
    assert rejects == [Reject("a.jsonl", 2, reason)]


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".xz"])
def test_truncated_archive_keeps_what_could_be_read(tmp_path, suffix):
    # Incompressible texts, so that half of the archive holds many lines.
    draw = random.Random(0)
    lines = [json.dumps({"text": f"{draw.getrandbits(400)}"}).encode() for _ in range(20_000)]
    data = compress(b"\n".join(lines), suffix)
    (tmp_path / f"a.jsonl{suffix}").write_bytes(data[: len(data) // 2])
    records, rejects = read_all(jsonl(tmp_path))
    assert [reject.reason for reject in rejects] == [TRUNCATED_FILE]
    assert 1000 < len(records) < 20_000
    assert rejects[0].line == len(records) + 1
    assert [json.loads(line)["text"] for line in lines[: len(records)]] == [r.fields["text"] for r in records]


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".xz"])
def test_corrupt_archive(tmp_path, suffix):
    (tmp_path / f"a.jsonl{suffix}").write_bytes(b"this is no archive at all, whatever its name says")
    records, rejects = read_all(jsonl(tmp_path))
    assert records == []
    assert rejects == [Reject(f"a.jsonl{suffix}", 1, CORRUPT_FILE)]


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("content", [b"", b"\n \n\n"])
def test_empty_file_is_rejected(tmp_path, suffix, content):
    (tmp_path / f"a.jsonl{suffix}").write_bytes(compress(content, suffix))
    records, rejects = read_all(jsonl(tmp_path))
    assert records == []
    assert rejects == [Reject(f"a.jsonl{suffix}", 0, EMPTY_FILE)]


def test_zst_of_several_frames(tmp_path):
    frames = [compress(json.dumps({"text": text}).encode() + b"\n", ".zst") for text in TEXTS]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    assert list(ids(jsonl(tmp_path)).values()) == TEXTS


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_line_of_many_megabytes(tmp_path, suffix):
    long = "word " * 2_000_000
    write_lines(tmp_path / "a.jsonl", [{"text": "a"}, {"text": long}, {"text": "b"}], suffix)
    records, rejects = read_all(jsonl(tmp_path))
    assert [len(r.fields["text"]) for r in records] == [1, len(long), 1] and rejects == []
    records, rejects = read_all(JsonlReader(JsonlConfig(folder=str(tmp_path)), longest=1_000_000))
    assert [(r.line, r.fields["text"]) for r in records] == [(1, "a"), (3, "b")]
    assert rejects == [Reject(f"a.jsonl{suffix}", 2, TOO_LONG)]


def test_byte_order_mark_is_not_content(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\r\n{"text": "y"}\r\n')
    assert list(ids(jsonl(tmp_path)).values()) == ["x", "y"]


@given(data=st.binary(max_size=200), size=st.integers(1, 40), longest=st.integers(1, 60))
def test_iter_lines_does_not_depend_on_the_blocks(data, size, longest):
    data = data.replace(b"\x00", b"\n")
    blocks = [data[i : i + size] for i in range(0, len(data), size)]
    expected = data.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    assert list(iter_lines(iter(blocks), longest)) == [e if len(e) <= longest else None for e in expected]


# --- files and identity


def test_missing_folder_and_pattern_without_files(tmp_path):
    with pytest.raises(ArtifactMissingError, match="corpus folder not found"):
        jsonl(tmp_path / "nowhere").pieces()
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ArtifactMissingError, match="no file matches"):
        jsonl(tmp_path).pieces()


def test_find_files_is_sorted_skips_hidden_files_and_stays_inside(tmp_path):
    for name in ("b/x.txt", "a.txt", ".hidden/x.txt", ".x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [relative for relative, _ in find_files(tmp_path, ("**/*.txt", "a.*"))] == ["a.txt", "b/x.txt"]
    with pytest.raises(ArtifactError, match="must be relative"):
        find_files(tmp_path, ("../*.txt",))


def test_identity_is_of_the_content_not_of_the_place(tmp_path):
    write_lines(tmp_path / "one" / "a.jsonl", [{"text": "x"}])
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    before = jsonl(tmp_path / "one").identity()
    assert jsonl(tmp_path / "two").identity() == before
    write_lines(tmp_path / "two" / "a.jsonl", [{"text": "y"}])  # the same size
    assert jsonl(tmp_path / "two").identity() != before
    (tmp_path / "one" / "a.jsonl").rename(tmp_path / "one" / "b.jsonl")
    assert jsonl(tmp_path / "one").identity() != before


def test_hash_cache_is_used_and_may_be_broken_or_deleted(tmp_path, monkeypatch):
    write_lines(tmp_path / "c" / "a.jsonl", [{"text": "x"}])
    cache = tmp_path / "cache" / "hashes.json"

    def identity():
        return JsonlReader(JsonlConfig(folder=str(tmp_path / "c")), hasher=FileHasher(cache)).identity()

    first = identity()
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.readers.hashing.scan", lambda *_: pytest.fail("hashed again"))
        assert identity() == first
    cache.write_text("{broken")
    assert identity() == first
    write_lines(tmp_path / "c" / "a.jsonl", [{"text": "longer"}])
    assert identity() != first


def test_a_reader_travels_to_workers_without_its_file_list(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    reader = jsonl(tmp_path)
    piece = reader.pieces()[0]
    travelled = pickle.loads(pickle.dumps(reader))
    assert "files" in reader.__dict__ and "files" not in travelled.__dict__
    assert list(travelled.read(piece)) == list(reader.read(piece))


# --- Parquet


def write_parquet(path, columns, **options):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)


def test_parquet_row_groups(tmp_path):
    texts = [f"text {i}" for i in range(1000)]
    write_parquet(tmp_path / "a.parquet", {"text": texts, "n": list(range(1000))}, row_group_size=300)
    config = ParquetConfig(folder=str(tmp_path))
    reader = ParquetReader(config, piece_bytes=1)
    assert len(reader.pieces()) == 4
    records, rejects = read_all(reader)
    assert [r.fields["text"] for r in records] == texts and rejects == []
    assert [r.fields["id"] for r in records][::999] == ["a.parquet:1", "a.parquet:1000"]
    assert read_all(ParquetReader(config)) == (records, [])
    by_number = ids(ParquetReader(ParquetConfig(folder=str(tmp_path), id_field="n")))
    assert by_number[17] == "text 17"


def test_parquet_nulls_and_other_types_reach_the_checks(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"text": ["x", None]})
    write_parquet(tmp_path / "b.parquet", {"text": [1, 2]})
    write_parquet(tmp_path / "c.parquet", {"text": pyarrow.array(["d", "d"]).dictionary_encode()})
    write_parquet(tmp_path / "d.parquet", {"text": ["e"]}, compression="zstd")
    records, _ = read_all(ParquetReader(ParquetConfig(folder=str(tmp_path))))
    assert [r.fields.get("text") for r in records] == ["x", None, 1, 2, "d", "d", "e"]


def test_parquet_broken_text_long_text_and_bad_files(tmp_path):
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, pyarrow.array(["ab", "cd"]).buffers()[:2] + [pyarrow.py_buffer(b"a\xffcd")]
    )
    write_parquet(tmp_path / "a.parquet", {"text": broken})
    write_parquet(tmp_path / "b.parquet", {"text": ["y" * 50, "z"]})
    (tmp_path / "c.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:-20])
    (tmp_path / "d.parquet").write_bytes(b"")
    write_parquet(tmp_path / "e.parquet", {"text": pyarrow.array([], pyarrow.string())})
    records, rejects = read_all(ParquetReader(ParquetConfig(folder=str(tmp_path)), longest=40))
    assert [r.fields["text"] for r in records] == ["cd", "z"]
    assert rejects == [
        Reject("a.parquet", 1, BROKEN_UTF8),
        Reject("b.parquet", 1, TOO_LONG),
        Reject("c.parquet", 0, CORRUPT_FILE),
        Reject("d.parquet", 0, EMPTY_FILE),
        Reject("e.parquet", 0, EMPTY_FILE),
    ]


def test_parquet_damaged_page_is_found(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"text": [f"text {i}" for i in range(100)]}, compression="zstd")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[60:300] = b"\x00" * 240
    (tmp_path / "a.parquet").write_bytes(data)
    _, rejects = read_all(ParquetReader(ParquetConfig(folder=str(tmp_path))))
    assert [reject.reason for reject in rejects] == [CORRUPT_FILE]


def test_parquet_missing_column_is_an_error(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"body": ["x"]})
    with pytest.raises(ArtifactError, match=r"a\.parquet: column 'text' not found; the file has body"):
        ParquetReader(ParquetConfig(folder=str(tmp_path))).pieces()


# --- a folder of texts


def test_text_folder(tmp_path):
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide" / "a.txt").write_bytes("erste\r\nzweite ä".encode())
    (tmp_path / "b.md").write_text("top")
    (tmp_path / "c.rst").write_bytes(b"one\ntwo \xff")
    (tmp_path / "d.txt").write_bytes(b"")
    (tmp_path / "e.txt").write_bytes(b"x" * 100)
    (tmp_path / "f.bin").write_bytes(b"not asked for")
    reader = TextFolderReader(TextFolderConfig(folder=str(tmp_path)), longest=50)
    records, rejects = read_all(reader)
    assert [(r.fields["id"], r.fields["text"], r.fields["group"]) for r in records] == [
        ("b.md", "top", "."),
        ("guide/a.txt", "erste\nzweite ä", "guide"),
    ]
    assert rejects == [
        Reject("c.rst", 2, BROKEN_UTF8),
        Reject("d.txt", 0, EMPTY_FILE),
        Reject("e.txt", 0, TOO_LONG),
    ]


# --- Hugging Face


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def test_huggingface_local_folder(tmp_path, hub_cache):
    write_lines(tmp_path / "d" / "train-0.jsonl", [{"body": text} for text in TEXTS])
    write_lines(tmp_path / "d" / "train-1.jsonl", [{"body": "fourth"}])
    config = HuggingFaceConfig(path=str(tmp_path / "d"), text_field="body")
    reader = HuggingFaceReader(config)
    assert len(reader.pieces()) == 2
    records, rejects = read_all(reader)
    assert sorted(r.fields["text"] for r in records) == sorted([*TEXTS, "fourth"]) and rejects == []
    assert {"train/00000:1", "train/00001:1"} <= {r.fields["id"] for r in records}
    identity = reader.identity()
    write_lines(tmp_path / "d" / "train-1.jsonl", [{"body": "fifth"}])
    assert HuggingFaceReader(config).identity() != identity


def test_huggingface_saved_data_set(tmp_path, hub_cache):
    hub_cache.Dataset.from_dict({"text": TEXTS, "key": ["a", "b", "c"]}).save_to_disk(str(tmp_path / "d"))
    reader = HuggingFaceReader(HuggingFaceConfig(path=str(tmp_path / "d"), id_field="key"))
    assert ids(reader) == dict(zip("abc", TEXTS, strict=True))
    both = hub_cache.DatasetDict({"dev": hub_cache.Dataset.from_dict({"text": ["held out"]})})
    both.save_to_disk(str(tmp_path / "e"))
    reader = HuggingFaceReader(HuggingFaceConfig(path=str(tmp_path / "e"), split="dev"))
    assert ids(reader) == {"dev/00000:1": "held out"}


def test_huggingface_wrong_column_and_wrong_split(tmp_path, hub_cache):
    hub_cache.Dataset.from_dict({"body": TEXTS}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(ArtifactError, match="column 'text' not found; the data set has body"):
        HuggingFaceReader(HuggingFaceConfig(path=str(tmp_path / "d"))).pieces()
    write_lines(tmp_path / "e" / "train.jsonl", [{"text": "x"}])
    with pytest.raises(ArtifactError, match=r"split 'nope'\): cannot be opened"):
        HuggingFaceReader(HuggingFaceConfig(path=str(tmp_path / "e"), split="nope")).pieces()


def test_huggingface_broken_file_is_a_reject(tmp_path, hub_cache):
    write_lines(tmp_path / "d" / "train.jsonl", [{"text": "x"}] * 3 + [b"{broken"])
    _, rejects = read_all(HuggingFaceReader(HuggingFaceConfig(path=str(tmp_path / "d"))))
    assert [reject.reason for reject in rejects] == [CORRUPT_FILE]


def test_huggingface_hub_name_is_pinned_to_a_commit(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    class Info:
        sha = "0123456789" * 4

    monkeypatch.setattr(hub.HfApi, "dataset_info", lambda self, name, revision=None: Info())
    reader = HuggingFaceReader(HuggingFaceConfig(path="someone/corpus", name="en"))
    expected = {"hub": "someone/corpus", "revision": Info.sha, "name": "en", "split": "train"}
    assert reader.identity() == expected
    assert pickle.loads(pickle.dumps(reader)).__dict__["revision"] == Info.sha  # workers do not ask again

    def offline(self, name, revision=None):
        raise OSError("no network\nhere")

    monkeypatch.setattr(hub.HfApi, "dataset_info", offline)
    with pytest.raises(ArtifactMissingError, match=r"neither a local folder nor found on the hub .*no network here"):
        HuggingFaceReader(HuggingFaceConfig(path="someone/corpus")).identity()
    commit = "a" * 40
    assert HuggingFaceReader(HuggingFaceConfig(path="s/c", revision=commit)).identity()["revision"] == commit
