"""What corpora are made of outside: mixed encodings, long lines, many tiny documents, archives of all kinds."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.ingest import IngestStage
from data_prep.readers.base import BROKEN_UTF8, CORRUPT_FILE, EMPTY_FILE, TRUNCATED_FILE, Reject
from data_prep.readers.jsonl import JsonlReader
from data_prep.readers.text_folder import TextFolderReader
from data_prep.runner import Executor, run_stage
from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactError, ConfigError
from retro.config.prep import IngestConfig, JsonlConfig, ParquetConfig, TextFolderConfig
from retro.data.document import iter_documents
from tests.data_prep.corpora import compress, read_all, write_lines

TEXTS = ["plain", "Grüße, 10 €", "日本語のテキスト", "\U0001f600 and \n a line", "x" * 5000]
MARKED = ["utf-8-sig", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]


def marked(text, name):
    return text.encode(name) if name == "utf-8-sig" else ("\ufeff" + text).encode(name)


def jsonl(folder, **options):
    return JsonlReader(JsonlConfig(folder=str(folder), **options), piece_bytes=64)


def run(config, root, workers=1):
    return run_stage(IngestStage(config), root, Executor(workers), progress=False)


# --- encodings


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", MARKED)
def test_marked_jsonl_of_every_encoding(tmp_path, name, suffix):
    lines = "\r\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in [*TEXTS, "ਊ\u0a0a\u0d0a"] * 20)
    (tmp_path / f"a.jsonl{suffix}").write_bytes(compress(marked(lines, name), suffix))
    reader = jsonl(tmp_path)
    records, rejects = read_all(reader)
    assert [r.fields["text"] for r in records] == [*TEXTS, "ਊ\u0a0a\u0d0a"] * 20 and rejects == []
    assert [r.line for r in records] == list(range(1, 121))
    assert {r.encoding for r in records} == {"utf-8" if name == "utf-8-sig" else name}
    # Only what has line ends of one byte is cut.
    assert (len(reader.pieces()) > 1) == (name == "utf-8-sig" and suffix == "")


@pytest.mark.parametrize("name", MARKED)
def test_marked_text_files(tmp_path, name):
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i}.txt").write_bytes(marked(text, name))
    records, rejects = read_all(TextFolderReader(TextFolderConfig(folder=str(tmp_path))))
    assert [r.fields["text"] for r in records] == TEXTS and rejects == []


def test_broken_utf_16(tmp_path):
    whole = marked('{"text": "a"}\n{"text": "b"}\n', "utf-16-le")
    lone = "\ud800".encode("utf-16-le", "surrogatepass")
    (tmp_path / "a.jsonl").write_bytes(
        whole[:-2] + '\n{"text": "'.encode("utf-16-le") + lone + '"}\n'.encode("utf-16-le")
    )
    (tmp_path / "b.jsonl").write_bytes(whole[:-1])  # half a character
    (tmp_path / "c.jsonl").write_bytes(marked('{"text": "c"}\n', "utf-32-le") + b"\xff\xff\xff\x7f")
    (tmp_path / "d.jsonl").write_bytes("\ufeff".encode("utf-16-be"))
    records, rejects = read_all(jsonl(tmp_path))
    assert [r.fields["text"] for r in records] == ["a", "b", "a"]
    assert rejects == [
        Reject("a.jsonl", 3, BROKEN_UTF8),
        Reject("b.jsonl", 2, TRUNCATED_FILE),
        Reject("c.jsonl", 1, CORRUPT_FILE),  # read in one block with what is broken
        Reject("d.jsonl", 0, EMPTY_FILE),
    ]


@given(text=st.text(min_size=1, max_size=40), size=st.integers(1, 7), name=st.sampled_from(MARKED[1:]))
def test_transcoding_does_not_depend_on_the_blocks(text, size, name):
    from data_prep.readers.encoding import without_mark

    data = marked(text, name) if name != "utf-8-sig" else text.encode(name)
    found, blocks = without_mark(iter([data[i : i + size] for i in range(0, len(data), size)]))
    assert (found, b"".join(blocks).decode("utf-8")) == (name, text)


MIXED = [
    b'{"text": "all of ASCII"}',
    '{"text": "größer in UTF-8"}'.encode(),
    '{"text": "größer als 5 €, in Windows"}'.encode("cp1252"),
    b'{"text": "in none of them: \x81\x8d"}',
]


def mixed_config(folder, *encodings):
    names = {"encodings": encodings} if encodings else {}
    return IngestConfig(reader="jsonl", jsonl=JsonlConfig(folder=str(folder), **names), max_reject_fraction=0.9)


def test_encodings_are_tried_for_each_record(tmp_path):
    write_lines(tmp_path / "c" / "a.jsonl", MIXED)
    strict = run(mixed_config(tmp_path / "c"), tmp_path / "out")
    assert open_manifest(strict).stats["rejects"] == {BROKEN_UTF8: 2}
    assert open_manifest(strict).stats["encodings"] == {"utf-8": 2}
    config = mixed_config(tmp_path / "c", "utf-8", "cp1252")
    folder = run(config, tmp_path / "out")
    assert [d.text for d in iter_documents(folder)][1:] == ["größer in UTF-8", "größer als 5 €, in Windows"]
    stats = open_manifest(folder).stats
    assert stats["encodings"] == {"cp1252": 1, "utf-8": 2} and stats["rejects"] == {BROKEN_UTF8: 1}
    assert "encodings: 1 cp1252, 2 utf-8" in IngestStage(config).summary(stats, 3)
    # Order is preference: with the one-byte encoding first nothing is taken for UTF-8 any more.
    turned = run(mixed_config(tmp_path / "c", "cp1252", "utf-8"), tmp_path / "out")
    assert open_manifest(turned).stats["encodings"] == {"cp1252": 3}


def test_encodings_are_tried_for_each_text_file(tmp_path):
    (tmp_path / "c").mkdir()
    for i, text in enumerate(["größer".encode(), "größer".encode("cp1252"), b"\x81\x8d", b"one\ntwo \xff\x81"]):
        (tmp_path / "c" / f"{i}.txt").write_bytes(text)
    reader = TextFolderReader(TextFolderConfig(folder=str(tmp_path / "c"), encodings=("utf-8", "cp1252")))
    records, rejects = read_all(reader)
    assert [(r.fields["text"], r.encoding) for r in records] == [("größer", "utf-8"), ("größer", "cp1252")]
    assert rejects == [Reject("2.txt", 1, BROKEN_UTF8), Reject("3.txt", 2, BROKEN_UTF8)]


@pytest.mark.parametrize("section", [JsonlConfig, TextFolderConfig])
@pytest.mark.parametrize("names", [(), ("klingon",), ("utf-8", "utf-8"), ("UTF8",), ("base64",)])
def test_encodings_that_cannot_be(section, names):
    with pytest.raises(ConfigError, match="encodings: "):
        section(folder="x", encodings=names)


def test_lines_cannot_be_found_in_wide_encodings():
    with pytest.raises(ConfigError, match="'utf-16' writes ends of lines in another way"):
        JsonlConfig(folder="x", encodings=("utf-8", "utf-16"))
    assert TextFolderConfig(folder="x", encodings=("utf-16",)).encodings == ("utf-16",)


# --- archives and pieces


def test_zst_of_a_long_window(tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=29, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = compressor.compress(b'{"text": "from an archive made with --long"}\n') + compressor.flush()
    (tmp_path / "a.jsonl.zst").write_bytes(data)
    records, rejects = read_all(jsonl(tmp_path))
    assert [r.fields["text"] for r in records] == ["from an archive made with --long"] and rejects == []


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_parquet_file_is_one_lost_file(tmp_path, keep):
    (tmp_path / "c").mkdir()
    for name in "ab":
        table = pyarrow.table({"text": [f"{name} {i}" for i in range(5000)]})
        pyarrow.parquet.write_table(table, tmp_path / "c" / f"{name}.parquet", row_group_size=500)
    path = tmp_path / "c" / "a.parquet"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    config = IngestConfig(reader="parquet", parquet=ParquetConfig(folder=str(tmp_path / "c")), max_reject_fraction=0.5)
    stats = open_manifest(run(config, tmp_path / "out")).stats
    assert stats["rejects"] == {CORRUPT_FILE: 1} and stats["documents"] == 5000


@settings(max_examples=20, deadline=None)
@given(piece_bytes=st.integers(1, 3000))
def test_documents_do_not_depend_on_the_pieces(piece_bytes, tmp_path_factory):
    root = tmp_path_factory.mktemp("pieces")
    for name, suffix in (("a", ""), ("b", ".gz"), ("c", "")):
        write_lines(root / "c" / f"{name}.jsonl", [{"text": f"{name} {i} " * (i % 7 + 1)} for i in range(40)], suffix)
    whole = IngestConfig(reader="jsonl", jsonl=JsonlConfig(folder=str(root / "c")))
    cut = IngestConfig(reader="jsonl", jsonl=JsonlConfig(folder=str(root / "c")), piece_bytes=piece_bytes)
    assert list(iter_documents(run(cut, root / "o"))) == list(iter_documents(run(whole, root / "o")))


def test_pieces_of_a_data_set_are_its_own():
    from retro.config.prep import HuggingFaceConfig

    with pytest.raises(ConfigError, match="piece_bytes is not read by reader 'huggingface'"):
        IngestConfig(reader="huggingface", huggingface=HuggingFaceConfig(path="x"), piece_bytes=1000)
    with pytest.raises(ConfigError, match="piece_bytes: expected 1 or more"):
        IngestConfig(piece_bytes=0)


def test_many_repeated_ids_are_counted_and_some_shown(tmp_path):
    records = [{"text": "x", "id": f"doc {i % 300}"} for i in range(1000)]
    write_lines(tmp_path / "c" / "a.jsonl", records)
    jsonl_config = JsonlConfig(folder=str(tmp_path / "c"), id_field="id")
    with pytest.raises(ArtifactError) as caught:
        run(IngestConfig(reader="jsonl", jsonl=jsonl_config, piece_bytes=1000), tmp_path / "out")
    message = str(caught.value)
    assert "300 document ids are used more than once" in message
    assert message.count(" in a.jsonl:") == 5 and message.count(" and a.jsonl:") == 5 and len(message) < 800
    assert not list(tmp_path.glob("out/ingest-*/.keys*"))


# --- memory: measured in a process of its own, as the highest resident size

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")

PEAK = """
import json, sys
from pathlib import Path
from data_prep.ingest import IngestStage
from data_prep.runner import run_stage
from retro.config.loader import from_dict
from retro.config.prep import IngestConfig
import zstandard, data_prep.external_sort, retro.data.npy_file
if sys.argv[1] == "parquet":
    import pyarrow.parquet


def peak():
    # Not getrusage: its figure includes the process that this one was forked from.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


before = peak()
config = from_dict(IngestConfig, json.loads(sys.argv[2]))
folder = run_stage(IngestStage(config), Path(sys.argv[3]), progress=False)
stats = json.loads((folder / "manifest.json").read_text())["stats"]
print(json.dumps({"added_mib": peak() - before, "stats": stats}))
"""


def measure(tmp_path, name, folder, **options):
    """What ingest adds to the memory of a process (MiB), and its statistics."""
    config = {"reader": name, name: {"folder": str(folder)}, **options}
    command = [sys.executable, "-c", PEAK, name, json.dumps(config), str(tmp_path / f"out-{len(os.listdir(tmp_path))}")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write_repeated(path, size, words=400):
    """JSON Lines of about `size` bytes with documents of about 3 kB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    block = b"".join(
        json.dumps({"text": " ".join(f"w{(i * j) % 9973}" for j in range(words))}).encode() + b"\n" for i in range(300)
    )
    with open(path, "wb") as file:
        for _ in range(-(-size // len(block))):
            file.write(block)
    return path


@needs_proc
def test_memory_does_not_grow_with_the_file(tmp_path):
    write_repeated(tmp_path / "small" / "a.jsonl", 4 << 20)
    write_repeated(tmp_path / "large" / "a.jsonl", 40 << 20)
    small = measure(tmp_path, "jsonl", tmp_path / "small")
    large = measure(tmp_path, "jsonl", tmp_path / "large")
    assert large["stats"]["documents"] > 9 * small["stats"]["documents"]
    assert large["added_mib"] < small["added_mib"] + 16
    # In one piece as well: it is the record that counts.
    whole = measure(tmp_path, "jsonl", tmp_path / "large", piece_bytes=1 << 40)
    assert whole["added_mib"] < small["added_mib"] + 16


@needs_proc
def test_memory_of_a_long_line(tmp_path):
    """8 MB as accepted, and 80 MB that are rejected without being held."""
    (tmp_path / "c").mkdir()
    with open(tmp_path / "c" / "a.jsonl", "wb") as file:
        file.write(b'{"text": "' + b"word " * 1_600_000 + b'"}\n')
        file.write(b'{"text": "')
        for _ in range(80):
            file.write(b"word " * 200_000)
        file.write(b'"}\n{"text": "last"}\n')
    found = measure(tmp_path, "jsonl", tmp_path / "c", max_record_bytes=10_000_000, max_reject_fraction=0.5)
    assert found["stats"]["documents"] == 2 and found["stats"]["rejects"] == {"record too long": 1}
    assert found["added_mib"] < 80


@needs_proc
def test_memory_of_a_large_row_group(tmp_path):
    (tmp_path / "c").mkdir()
    draw = random.Random(0)
    table = pyarrow.table({"text": [draw.randbytes(100_000).hex() for _ in range(400)]})  # 80 MB, 40 compressed
    path = tmp_path / "c" / "a.parquet"  # pages of about 1 MB, which are the least that can be read
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False, write_batch_size=1)
    found = measure(tmp_path, "parquet", tmp_path / "c")
    assert found["stats"]["documents"] == 400
    assert found["added_mib"] < 60


@needs_proc
@pytest.mark.slow
def test_a_file_of_several_gigabytes(tmp_path):
    size = (2 << 30) + (100 << 20)
    path = write_repeated(tmp_path / "c" / "a.jsonl", size)
    with open(path, "ab") as file:  # and a line of 100 MB at its end
        file.write(b'{"text": "' + b"word " * 20_000_000 + b'"}\n')
    found = measure(tmp_path, "jsonl", tmp_path / "c", max_record_bytes=200_000_000)
    assert found["stats"]["text_bytes"] > 2 << 30 and found["stats"]["rejected"] == 0
    assert found["added_mib"] < 1000
    path.unlink()


@needs_proc
@pytest.mark.slow
def test_a_million_tiny_documents(tmp_path):
    """In one file; and memory does not follow their number."""
    for name, count in (("small", 100_000), ("large", 1_000_000)):
        (tmp_path / name).mkdir()
        with open(tmp_path / name / "a.jsonl", "w") as file:
            file.writelines(f'{{"text": "tiny {i}"}}\n' for i in range(count))
    small = measure(tmp_path, "jsonl", tmp_path / "small")
    large = measure(tmp_path, "jsonl", tmp_path / "large")
    assert large["stats"]["documents"] == 1_000_000
    assert large["added_mib"] < small["added_mib"] + 48  # the ids are sorted at the end: 8 bytes each, 4 times
    assert large["added_mib"] < 200
