"""Stage ingest: documents, rejects, thresholds, splits; the same bytes for any number of workers and any place."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.ingest import IngestStage
from data_prep.runner import Executor, run_stage
from data_prep.split import Splitter
from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactCorruptError, ArtifactError, ArtifactMissingError, ConfigError
from retro.config.loader import dump_yaml, from_dict, load_config, to_dict
from retro.config.prep import (
    IngestConfig,
    JsonlConfig,
    ParquetConfig,
    PythonDocsConfig,
    SplitConfig,
    TextFolderConfig,
)
from retro.data.document import Document, DocumentWriter, document_files, document_key, iter_documents, read_documents
from tests.data_prep.corpora import write_lines


def config(folder, split=None, **options):
    names = ("text_field", "id_field", "title_field", "group_field", "files", "encodings")
    section = {name: options.pop(name) for name in names if name in options}
    reader = JsonlConfig(folder=str(folder), **section)
    return IngestConfig(reader="jsonl", jsonl=reader, split=split or SplitConfig(), **options)


def run(settings, root, workers=1):
    return run_stage(IngestStage(settings), root, Executor(workers=workers), progress=False)


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rejects(folder):
    lines = [line for path in sorted(folder.glob("rejects-*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def test_documents_of_a_corpus(tmp_path):
    records = [{"text": "Erster ä.", "id": 1, "name": "One"}, {"text": "Second.", "id": "two", "name": None}]
    write_lines(tmp_path / "c" / "a.jsonl", records)
    folder = run(config(tmp_path / "c", id_field="id", title_field="name"), tmp_path / "out")
    assert list(iter_documents(folder)) == [
        Document("1", "Erster ä.", "One", "a.jsonl:1", "", "train"),
        Document("two", "Second.", "", "a.jsonl:2", "", "train"),
    ]
    manifest = open_manifest(folder, "documents")
    assert manifest.stats == {
        "documents": 2,
        "text_bytes": len("Erster ä.Second.".encode()),
        "splits": {"train": 2},
        "rejected": 0,
        "rejects": {},
        "encodings": {"utf-8": 2},
        "files": 1,
    }


BAD = {
    "no text": {"id": "1"},
    "empty text": {"text": " \n\t "},
    "wrong type": {"text": ["a", "list"]},
    "broken UTF-8": b'{"text": "lone surrogate \\ud800"}',
    "broken JSON": b"{",
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_records_are_counted_listed_and_shown(tmp_path, reason):
    write_lines(tmp_path / "c" / "a.jsonl", [{"text": "good"}, BAD[reason], {"text": None}, {"text": "also good"}])
    folder = run(config(tmp_path / "c", max_reject_fraction=0.5), tmp_path / "out")
    expected = [("a.jsonl", 2, reason), ("a.jsonl", 3, "no text")]
    assert [(r["source"], r["line"], r["reason"]) for r in rejects(folder)] == expected
    stats = open_manifest(folder).stats
    assert stats["rejected"] == 2 and stats["documents"] == 2
    assert sum(stats["rejects"].values()) == 2 and stats["rejects"][reason] >= 1
    assert reason in IngestStage(config(tmp_path / "c", max_reject_fraction=0.5)).summary(stats, 2)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": "x"}, "no id"),
        ({"text": "x", "id": ""}, "no id"),
        ({"text": "x", "id": None}, "no id"),
        ({"text": "x", "id": 1.5}, "wrong type"),
        ({"text": "x", "id": True}, "wrong type"),
        ({"text": "x", "id": ["x"]}, "wrong type"),
        ({"text": "x", "id": "1", "cat": {"a": 1}}, "wrong type"),
        ({"text": "x", "id": "1", "cat": None}, "no group"),
        (b'{"text": "x", "id": "\\udfff", "cat": "g"}', "broken UTF-8"),
    ],
)
def test_bad_ids_and_groups(tmp_path, record, reason):
    write_lines(tmp_path / "c" / "a.jsonl", [{"text": "good", "id": "ok", "cat": "g"}, record])
    split = SplitConfig(by="group", validation_fraction=0.0, test_fraction=0.0)
    folder = run(
        config(tmp_path / "c", split, id_field="id", group_field="cat", max_reject_fraction=0.5), tmp_path / "o"
    )
    assert [r["reason"] for r in rejects(folder)] == [reason]


def test_threshold_is_an_error_after_everything_was_read(tmp_path):
    records = [{"text": "x"}] * 60 + [{"text": ""}] * 30 + [b"{"] * 10
    write_lines(tmp_path / "c" / "a.jsonl", records)
    write_lines(tmp_path / "c" / "b.jsonl", [{"text": "y"}] * 100)
    with pytest.raises(ArtifactCorruptError) as caught:
        run(config(tmp_path / "c", max_reject_fraction=0.199), tmp_path / "out")
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert "40 of 200 records were rejected (20.00 %, allowed 19.9 %): 10 broken JSON, 30 empty text" in message
    (folder,) = (tmp_path / "out").glob("ingest-*")
    assert len(rejects(folder)) == 40 and not (folder / "manifest.json").exists()
    with pytest.raises(ArtifactCorruptError):  # and again when it resumes
        run(config(tmp_path / "c", max_reject_fraction=0.199), tmp_path / "out")
    assert (
        open_manifest(run(config(tmp_path / "c", max_reject_fraction=0.2), tmp_path / "out")).stats["documents"] == 160
    )


def test_a_lost_file_counts_as_a_file(tmp_path):
    write_lines(tmp_path / "c" / "a.jsonl", [{"text": "x"}] * 1000)
    path = write_lines(tmp_path / "c" / "b.jsonl", [{"text": "y"}] * 1000, ".gz")
    path.write_bytes(path.read_bytes()[:-12])
    # One reject among more than a thousand records, but one of two files.
    with pytest.raises(ArtifactCorruptError, match=r"1 of 2 files were rejected .*1 truncated file"):
        run(config(tmp_path / "c"), tmp_path / "out")
    run(config(tmp_path / "c", max_reject_fraction=0.5), tmp_path / "out")


def test_a_corpus_without_any_document_is_an_error(tmp_path):
    write_lines(tmp_path / "c" / "a.jsonl", [{"body": "x"}] * 3)
    with pytest.raises(ArtifactError, match="no usable document; rejected: 3 no text"):
        run(config(tmp_path / "c", max_reject_fraction=1.0), tmp_path / "out")
    with pytest.raises(ArtifactMissingError):
        IngestStage(config(tmp_path / "nowhere"))


def test_an_id_used_twice_is_an_error_that_names_both_places(tmp_path):
    write_lines(tmp_path / "c" / "a.jsonl", [{"text": "x", "id": "one"}, {"text": "y", "id": "two"}])
    write_lines(tmp_path / "c" / "b.jsonl", [{"text": "z", "id": "one"}])
    with pytest.raises(ArtifactError, match=r"1 document ids .* 'one' in a\.jsonl:1 and b\.jsonl:1"):
        run(config(tmp_path / "c", id_field="id"), tmp_path / "out")
    assert len(list(iter_documents(run(config(tmp_path / "c"), tmp_path / "out")))) == 3


# --- splits


def test_no_group_straddles(tmp_path):
    records = [{"text": f"text {i}", "cat": f"group{i % 40}"} for i in range(400)]
    write_lines(tmp_path / "c" / "a.jsonl", records)
    split = SplitConfig(
        by="group",
        validation_fraction=0.2,
        test_fraction=0.2,
        validation_groups=("group3",),
        test_groups=("group4", "group5"),
        database_only_groups=("group6",),
    )
    folder = run(config(tmp_path / "c", split, group_field="cat"), tmp_path / "out")
    splits: dict[str, set[str]] = {}
    for document in iter_documents(folder):
        splits.setdefault(document.group, set()).add(document.split)
    assert all(len(found) == 1 for found in splits.values()) and len(splits) == 40
    assert splits["group3"] == {"valid"} and splits["group4"] == splits["group5"] == {"test"}
    assert splits["group6"] == {"database_only"}
    counts = [sum(found == {split} for found in splits.values()) for split in ("train", "valid", "test")]
    assert min(counts) >= 4 and counts[0] > 15


@given(st.integers(0, 1000), st.floats(0, 0.4), st.floats(0, 0.4))
def test_hashed_split_is_a_function_of_the_group_alone(seed, validation, test):
    splitter = Splitter(SplitConfig(by="group", validation_fraction=validation, test_fraction=test, seed=seed))
    for group in ("torch.nn", "sympy", "ä"):
        one = splitter.assign("a", group, "x", None)
        assert one == splitter.assign("b", group, "y", "ignored")
        if validation == test == 0:
            assert one == "train"


def test_hashed_split_has_the_fractions_and_depends_on_the_seed():
    def assigned(seed):
        splitter = Splitter(SplitConfig(validation_fraction=0.1, test_fraction=0.2, seed=seed))
        return [splitter.assign(f"doc{i}", "", "", None) for i in range(4000)]

    first = assigned(0)
    assert 700 < first.count("test") < 900 and 330 < first.count("valid") < 470
    assert assigned(0) == first != assigned(1)


def test_growing_a_fraction_keeps_what_was_held_out():
    small = Splitter(SplitConfig(validation_fraction=0.0, test_fraction=0.1))
    large = Splitter(SplitConfig(validation_fraction=0.0, test_fraction=0.2))
    names = [f"doc{i}" for i in range(1000)]
    tests = {n for n in names if small.assign(n, "", "", None) == "test"}
    assert tests < {n for n in names if large.assign(n, "", "", None) == "test"}


def test_split_by_field(tmp_path):
    values = ["train", "dev", "validation", "test", "db_only", "holdout", "nonsense", None, 3]
    write_lines(tmp_path / "c" / "a.jsonl", [{"text": "x", "part": value} for value in values] + [{"text": "x"}])
    split = SplitConfig(by="field", field="part", names={"holdout": "test"})
    folder = run(config(tmp_path / "c", split, max_reject_fraction=0.5), tmp_path / "out")
    found = [document.split for document in iter_documents(folder)]
    assert found == ["train", "valid", "valid", "test", "database_only", "test"]
    assert open_manifest(folder).stats["rejects"] == {"unknown split": 4}


def test_split_by_file(tmp_path):
    for name in ("wiki_train", "wiki_dev", "sub/wiki_test", "extra"):
        write_lines(tmp_path / "c" / f"{name}.jsonl", [{"text": name}], ".xz")
    split = SplitConfig(
        by="file", validation_files=("*_dev.*",), test_files=("*_test.*",), database_only_files=("extra.jsonl.xz",)
    )
    folder = run(config(tmp_path / "c", split), tmp_path / "out")
    found = {document.text: document.split for document in iter_documents(folder)}
    assert found == {"wiki_train": "train", "wiki_dev": "valid", "sub/wiki_test": "test", "extra": "database_only"}
    missing = SplitConfig(by="file", test_files=("*_tset.*",))
    with pytest.raises(ConfigError, match=r"no file of the corpus matches '\*_tset"):
        run(config(tmp_path / "c", missing), tmp_path / "out")


def test_a_listed_group_that_nothing_has_is_an_error(tmp_path):
    write_lines(tmp_path / "c" / "a.jsonl", [{"text": "x", "cat": "sympy"}])
    split = SplitConfig(by="group", test_groups=("simpy",), validation_fraction=0.0, test_fraction=0.0)
    with pytest.raises(ConfigError, match="'simpy' is listed, but no document has it"):
        run(config(tmp_path / "c", split, group_field="cat"), tmp_path / "out")


# --- identity and determinism


def test_same_bytes_for_one_and_two_workers(tmp_path):
    for name in "abc":
        write_lines(tmp_path / "c" / f"{name}.jsonl", [{"text": f"{name} {i}"} for i in range(300)] + [b"{"] * 2)
    one = run(config(tmp_path / "c", piece_bytes=2000), tmp_path / "one", workers=1)
    two = run(config(tmp_path / "c", piece_bytes=2000), tmp_path / "two", workers=2)
    assert len(document_files(one)) > 4
    assert content(one) == content(two)


def test_same_documents_from_another_place_and_another_order_of_writing(tmp_path):
    for name in ("b", "a"):
        write_lines(tmp_path / "one" / f"{name}.jsonl", [{"text": name}])
    for name in ("a", "b"):
        write_lines(tmp_path / "two" / f"{name}.jsonl", [{"text": name}])
    one, two = run(config(tmp_path / "one"), tmp_path / "o1"), run(config(tmp_path / "two"), tmp_path / "o2")
    assert one.name == two.name and content(one) == content(two)


def test_a_changed_corpus_is_another_artifact(tmp_path):
    write_lines(tmp_path / "c" / "a.jsonl", [{"text": "x"}])
    before = run(config(tmp_path / "c"), tmp_path / "out")
    write_lines(tmp_path / "c" / "a.jsonl", [{"text": "y"}])
    after = run(config(tmp_path / "c"), tmp_path / "out")
    assert before != after and [d.text for d in iter_documents(after)] == ["y"]


@pytest.mark.parametrize(
    "changed",
    [
        {"split": SplitConfig(seed=1)},
        {"split": SplitConfig(test_fraction=0.2)},
        {"max_reject_fraction": 0.02},
        {"max_record_bytes": 99},
        {"piece_bytes": 99},
        {"encodings": ("utf-8", "cp1252")},
        {"id_field": "id"},
        {"text_field": "body"},
        {"title_field": "t"},
        {"group_field": "g"},
    ],
)
def test_every_option_is_in_the_fingerprint(tmp_path, changed):
    write_lines(tmp_path / "c" / "a.jsonl", [{"text": "x"}])
    assert (
        IngestStage(config(tmp_path / "c")).fingerprint()
        != IngestStage(config(tmp_path / "c", **changed)).fingerprint()
    )


def test_spelled_out_defaults_are_the_same_question(tmp_path):
    write_lines(tmp_path / "c" / "a.jsonl", [{"text": "x"}])
    spelled = config(tmp_path / "c", SplitConfig(validation_fraction=0.01, test_fraction=0.01))
    assert IngestStage(spelled).fingerprint() == IngestStage(config(tmp_path / "c")).fingerprint()


def test_python_docs_through_the_stage(tmp_path):
    settings = IngestConfig(
        python_docs=PythonDocsConfig(packages=("yaml",), standard_library=False),
        split=SplitConfig(by="group", test_groups=("yaml",)),
    )
    documents = list(iter_documents(run(settings, tmp_path)))
    assert {d.group for d in documents} == {"yaml"} and {d.split for d in documents} == {"test"}
    assert any(d.id == "yaml.load" and d.source.startswith("yaml/__init__.py:") for d in documents)


def test_text_folder_through_the_stage(tmp_path):
    for name in ("a/x.txt", "b/y.txt"):
        (tmp_path / "c" / name).parent.mkdir(parents=True)
        (tmp_path / "c" / name).write_text(name)
    settings = IngestConfig(
        reader="text_folder",
        text_folder=TextFolderConfig(folder=str(tmp_path / "c")),
        split=SplitConfig(by="group", test_groups=("b",), validation_fraction=0, test_fraction=0),
    )
    found = {(d.id, d.source, d.split) for d in iter_documents(run(settings, tmp_path / "out"))}
    assert found == {("a/x.txt", "a/x.txt", "train"), ("b/y.txt", "b/y.txt", "test")}


# --- configuration


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IngestConfig(reader="jsonl"), "jsonl.folder is required"),
        (lambda: IngestConfig(reader="huggingface"), "huggingface.path is required"),
        (
            lambda: IngestConfig(jsonl=JsonlConfig(folder="x")),
            "section jsonl is filled in, but reader is 'python_docs'",
        ),
        (lambda: IngestConfig(python_docs=PythonDocsConfig(standard_library=False)), "nothing to read"),
        (lambda: IngestConfig(max_reject_fraction=1.5), "max_reject_fraction"),
        (
            lambda: SplitConfig(by="document", test_groups=("a",)),
            "test_groups is not read when splitting by 'document'",
        ),
        (lambda: SplitConfig(by="file", seed=3), "seed is not read"),
        (lambda: SplitConfig(by="field"), "field is required"),
        (lambda: SplitConfig(by="field", field="x", names={"a": "b"}), "names.a: expected one of train"),
        (lambda: SplitConfig(validation_fraction=0.6, test_fraction=0.5), "sum below 1"),
        (lambda: SplitConfig(by="group", test_groups=("a",), validation_groups=("a",)), "listed for two splits"),
        (lambda: config("c", SplitConfig(by="group")), "needs jsonl.group_field"),
        (lambda: IngestConfig(split=SplitConfig(by="field", field="x")), "have no fields"),
        (lambda: IngestConfig(split=SplitConfig(by="file", test_files=("x",))), "has no files to match"),
        (lambda: PythonDocsConfig(group_depth={"torch": 0}), "group_depth: expected 1 or more"),
        (lambda: PythonDocsConfig(min_characters=0), "min_characters"),
    ],
)
def test_configurations_that_cannot_be_meant_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_configuration_round_trip(tmp_path):
    settings = IngestConfig(
        reader="parquet",
        parquet=ParquetConfig(folder="x", group_field="g"),
        split=SplitConfig(by="group", test_groups=("a", "b"), test_fraction=0.5),
    )
    assert from_dict(IngestConfig, to_dict(settings)) == settings
    (tmp_path / "c.yaml").write_text(dump_yaml(settings))
    assert load_config(IngestConfig, tmp_path / "c.yaml") == settings
    demo = load_config(
        IngestConfig,
        None,
        [
            "python_docs.packages=[torch]",
            "python_docs.group_depth={torch: 2}",
            "split.by=group",
            "split.test_groups=[x]",
        ],
    )
    assert demo.python_docs.group_depth == {"torch": 2} and demo.split.test_groups == ("x",)


# --- documents on disk


def test_document_key_is_eight_little_endian_bytes():
    assert document_key("torch.nn.functional.cross_entropy") == 1991671446000074563  # a format: never changes
    assert document_key("a") != document_key("b") < 2**64


def test_large_shards_are_several_files(tmp_path):
    documents = [Document(f"d{i}", "text " * i, "", "s", "", "train") for i in range(1, 40)]
    with DocumentWriter(tmp_path, "00007", file_bytes=1000) as writer:
        for document in documents:
            writer.write(document)
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files][:2] == ["documents-00007-00000.jsonl.zst", "documents-00007-00001.jsonl.zst"]
    assert len(files) > 3 and writer.count == 39
    assert [document for path in files for document in read_documents(path)] == documents


@pytest.mark.parametrize("damage", ["truncate", "garbage", "field", "split"])
def test_damaged_documents_are_refused(tmp_path, damage):
    import zstandard

    write_lines(tmp_path / "c" / "a.jsonl", [{"text": f"text {i} " * 50} for i in range(2000)])
    folder = run(config(tmp_path / "c"), tmp_path / "out")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = copy / "documents-00000-00000.jsonl.zst"
    data = path.read_bytes()
    line = {"id": "a", "text": "x", "title": "", "source": "", "group": "", "split": "train"}
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2] + b"\x00" * (len(data) - len(data) // 2))
    elif damage == "garbage":
        path.write_bytes(b"x" * len(data))
    else:
        line.pop("text") if damage == "field" else line.update(split="dev")
        text = json.dumps(line).encode() + b"\n"
        path.write_bytes(zstandard.ZstdCompressor().compress(text).ljust(len(data), b"\x00"))
    with pytest.raises(ArtifactCorruptError, match=r"documents-00000-00000\.jsonl\.zst"):
        list(iter_documents(copy))
