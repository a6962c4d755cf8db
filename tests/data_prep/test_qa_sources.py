"""Question files of every format, data sets of the hub and releases give the same questions; broken ones one line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from data_prep.qa_source.local_files import iter_records
from data_prep.qa_source.sources import FilesSource, HubSource, ReleaseSource, open_source
from retro.config.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactMismatchError,
    ArtifactMissingError,
    ConfigError,
)
from retro.config.qa_source import HubData, QaSourceConfig
from retro.data.qa.record import QaQuestion
from retro.data.qa.task import TaskDefinition, open_task
from retro.data.questions import Question, write_questions
from tests.data.builders import write_artifact
from tests.data_prep.corpora import COMPRESSIONS, compress, write_lines

RECORDS = [
    {"question": "who wrote Émile", "answers": ["Rousseau", "Jean-Jacques Rousseau"]},
    {"question": 'what is "x, y"', "answers": ["1988"]},
    {"question": "when", "answers": ["2018-05-18", "NA", "null"]},
]
CUSTOM = open_task("custom")


def questions(source, split="test"):
    return [(item.question.question, list(item.question.answers)) for item in source.iter_questions(split)]


def files_source(path, **values):
    return open_source(CUSTOM, QaSourceConfig(files={"test": (str(path),)}, **values))


EXPECTED = [(record["question"], record["answers"]) for record in RECORDS]


# --- Formats


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_json_lines(tmp_path, suffix):
    assert questions(files_source(write_lines(tmp_path / "q.jsonl", RECORDS, suffix))) == EXPECTED


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize(
    "text",
    [
        json.dumps(RECORDS),
        json.dumps(RECORDS, indent=2, ensure_ascii=False),
        json.dumps({"version": 1, "data": RECORDS}),
        json.dumps({"Data": RECORDS}),
        "\n".join(json.dumps(record) for record in RECORDS),  # lines, under another name
        "\n\n".join(json.dumps(record, indent=1) for record in RECORDS),
        "\ufeff" + json.dumps(RECORDS),
    ],
)
def test_json(tmp_path, text, suffix):
    path = tmp_path / f"q.json{suffix}"
    path.write_bytes(compress(text.encode(), suffix))
    assert questions(files_source(path)) == EXPECTED


def test_json_of_one_record(tmp_path):
    (tmp_path / "q.json").write_text(json.dumps(RECORDS[0]))
    assert questions(files_source(tmp_path / "q.json")) == EXPECTED[:1]


@pytest.mark.parametrize(("suffix", "mark"), [(".csv", ","), (".tsv", "\t"), (".csv.gz", ","), (".csv", "\t")])
def test_tables_with_a_header(tmp_path, suffix, mark):
    import csv
    import io

    out = io.StringIO(newline="")
    table = csv.writer(out, delimiter=mark)
    table.writerow(["question", "answers"])
    table.writerows([record["question"], "|".join(record["answers"])] for record in RECORDS)
    path = tmp_path / f"q{suffix}"
    path.write_bytes(compress(out.getvalue().encode(), ".gz" if suffix.endswith("gz") else ""))
    assert questions(files_source(path, fields={"answers_separator": "|"})) == EXPECTED


def test_dprs_tables(tmp_path):
    """No header, tabs in a file called .csv, answers as a Python list."""
    lines = [f"{record['question']}\t{record['answers']!r}\n" for record in (RECORDS[0], RECORDS[2])]
    (tmp_path / "nq-test.qa.csv").write_text("".join(lines))
    fields = {"question": "column_1", "answers": "column_2", "answers_text": "python"}
    assert questions(files_source(tmp_path / "nq-test.qa.csv", fields=fields)) == [EXPECTED[0], EXPECTED[2]]


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "q.parquet", row_group_size=2)
    assert questions(files_source(tmp_path / "q.parquet")) == EXPECTED


def test_squads_own_files(tmp_path):
    """Nested as published; the same questions as the hub's flat copy."""
    answers = [{"text": "Rousseau", "answer_start": 3}, {"text": "J.-J. Rousseau", "answer_start": 9}]
    paragraph = {"context": "c", "qas": [{"id": "56be", "question": "Who?", "answers": answers}]}
    nested = {"version": "1.1", "data": [{"title": "Émile", "paragraphs": [paragraph]}]}
    flat = {"id": "56be", "title": "Émile", "context": "c", "question": "Who?"}
    flat["answers"] = {"text": [a["text"] for a in answers], "answer_start": [3, 9]}
    (tmp_path / "dev-v1.1.json").write_text(json.dumps(nested))
    write_lines(tmp_path / "flat.jsonl", [flat])
    squad = open_task("squad_open")
    found = [
        list(open_source(squad, QaSourceConfig(files={"test": (str(tmp_path / name),)})).iter_questions("test"))
        for name in ("dev-v1.1.json", "flat.jsonl")
    ]
    assert found[0] == found[1]
    expected = QaQuestion("56be", "Who?", ("Rousseau", "J.-J. Rousseau"), subject="Émile")
    assert [item.question for item in found[0]] == [expected]


def test_fids_files_bring_their_passages(tmp_path):
    contexts = [{"id": str(i), "title": f"T{i}", "text": f"text {i}", "score": f"{80 - i}.5"} for i in range(30)]
    record = {"question": "q", "target": "B", "answers": ["A", "B"], "ctxs": contexts}
    (tmp_path / "train.json").write_text(json.dumps([record]))
    fields = {"answers": "answers", "target": "target", "passages": "ctxs", "id": None}
    config = QaSourceConfig(files={"train": (str(tmp_path / "train.json"),)}, fields=fields, passages=3)
    (item,) = open_source(open_task("triviaqa"), config).iter_questions("train")
    assert item.question.answers == ("B", "A")
    assert [(p.title, p.text, p.document, p.score) for p in item.passages] == [
        (f"T{i}", f"text {i}", str(i), 80.5 - i) for i in range(3)
    ]


def test_several_files_and_relations_of_their_names(tmp_path):
    for relation in ("P17", "P19"):
        (tmp_path / f"{relation}.test.json").write_text(json.dumps([{"question": relation, "answers": ["a"]}]))
    config = QaSourceConfig(files={"test": (str(tmp_path / "*.test.json"),)})
    found = list(open_source(open_task("entity_questions"), config).iter_questions("test"))
    assert [(item.question.question, item.question.relation) for item in found] == [("P17", "P17"), ("P19", "P19")]


# --- What is wrong with a file


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("q.jsonl", b'{"question": "q", "answers": ["a"]}\n{broken\n', "q.jsonl:2: not JSON"),
        ("q.jsonl", b"[1]\n", "q.jsonl:1: expected a record {...}, found list"),
        ("q.jsonl", b'{"question": "\xff"}\n', "expected UTF-8"),
        ("q.jsonl.gz", compress(b"{}" * 9999, ".gz")[:50], "truncated; get the file again"),
        ("q.jsonl.xz", b"no xz", "q.jsonl.xz: corrupt"),
        ("q.json", b'[{"question": "q", "answers": ["a"]}, {"que', "not JSON"),
        ("q.json", b'[{"question": "q", "answers": ["a"]}] x', "text after the list"),
        ("q.json", b"[3]", "record 0: expected a record {...}, found int"),
        ("q.json", b"\xff", "expected UTF-8"),
        ("q.csv", b"question,answers\nq\n", "q.csv:2: expected 2 columns (question, answers), found 1"),
        ("q.json", b'{"data": [{"paragraphs": [{"qas": null}]}]}', "record 0: qas: expected a list, found NoneType"),
        ("q.json", b'{"data": [{"paragraphs": [{"qas": [{"answers": 3}]}]}]}', "answers: expected a list, found int"),
        ("q.csv", b"question,question,answers\nq,r,a\n", "q.csv:1: expected columns of different names"),
        ("q.csv", b"\xff\xfe\xff", "truncated"),
        ("q.parquet", b"PAR1", "not a whole Parquet file"),
        ("q.txt", b"", "expected .jsonl, .json, .csv, .tsv, .parquet"),
        ("q.parquet.gz", b"", "all but Parquet also with"),
        ("q.gz", b"", "expected .jsonl"),
        ("q.jsonl", b"", "expected questions, found none"),
        ("q.jsonl", b'{"question": "q", "answers": []}\n', "q.jsonl:1: answers: expected at least one answer"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        list(files_source(tmp_path / name).iter_questions("test"))
    text = str(caught.value)
    assert message in text and str(tmp_path / name) in text and "\n" not in text


def test_a_missing_file(tmp_path):
    with pytest.raises(ArtifactMissingError, match=r"nothing-\*.jsonl: file of questions not found"):
        files_source(tmp_path / "nothing-*.jsonl")


def test_a_file_that_changes_between_hash_and_reading(tmp_path):
    path = write_lines(tmp_path / "q.jsonl", RECORDS)
    source = files_source(path)
    write_lines(path, RECORDS[:1])
    with pytest.raises(ArtifactMismatchError, match="the corpus changed while it was read"):
        list(source.iter_questions("test"))


def test_the_identity_of_files_is_their_content(tmp_path):
    one = write_lines(tmp_path / "a" / "q.jsonl", RECORDS)
    same = write_lines(tmp_path / "b" / "q.jsonl", RECORDS)
    other = write_lines(tmp_path / "c" / "q.jsonl", RECORDS[:2])
    identity = files_source(one).identity(("test",))
    assert files_source(same).identity(("test",)) == identity
    assert files_source(other).identity(("test",)) != identity
    assert files_source(one, fields={"group": "question"}).identity(("test",)) != identity


def test_a_list_is_read_item_by_item(tmp_path):
    """The first records of a list come before a later one is looked at."""
    (tmp_path / "q.json").write_text('[{"question": "q"}, {broken')
    records = iter_records(tmp_path / "q.json", "question")
    assert next(records) == (f"{tmp_path / 'q.json'}: record 0", {"question": "q"})
    with pytest.raises(ArtifactCorruptError):
        next(records)


# --- The hub


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return library


def popqa_records():
    return [
        {
            "id": 10 + i,
            "prop": "author",
            "subj": f"Book {i}",
            "s_pop": 10 * i,
            "o_pop": -1,
            "question": f"Who wrote Book {i}?",
            "possible_answers": json.dumps([f"Author {i}", f"A. {i}"]),
        }
        for i in range(4)
    ]


def test_hub_and_file_are_the_same_questions(tmp_path, datasets):
    """A folder that the hub's library opens, a set that it saved, and the bare file."""
    popqa = open_task("popqa")
    file = write_lines(tmp_path / "folder" / "test.jsonl", popqa_records())
    datasets.DatasetDict({"test": datasets.Dataset.from_list(popqa_records())}).save_to_disk(str(tmp_path / "saved"))
    expected = list(open_source(popqa, QaSourceConfig(files={"test": (str(file),)})).iter_questions("test"))
    assert expected[2].question == QaQuestion(
        "12", "Who wrote Book 2?", ("Author 2", "A. 2"), relation="author", subject="Book 2", popularity=20.0
    )
    for folder in ("folder", "saved"):
        hub = HubData(str(tmp_path / folder), splits={"test": "test"})
        assert list(open_source(popqa, QaSourceConfig(hub=hub)).iter_questions("test")) == expected


def test_the_hub_is_asked_for_one_commit(datasets, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    commit = "0123456789" * 4
    asked = []

    class Info:
        sha = commit

    def load(path, name, *, split, revision, streaming):
        asked.append((path, name, split, revision, streaming))
        return datasets.Dataset.from_list(popqa_records())

    monkeypatch.setattr(hub.HfApi, "dataset_info", lambda self, name, revision=None: Info())
    monkeypatch.setattr(datasets, "load_dataset", load)
    source = open_source(open_task("popqa"), QaSourceConfig())
    assert isinstance(source, HubSource) and source.splits == ("test",)
    identity = source.identity(("test",))
    assert identity["hub"] == {"path": "akariasai/PopQA", "revision": commit, "name": None, "splits": {"test": "test"}}
    assert len(list(pickle.loads(pickle.dumps(source)).iter_questions("test"))) == 4
    assert asked == [("akariasai/PopQA", None, "test", commit, False)]  # kept in the cache, for work without a network

    monkeypatch.setattr(hub.HfApi, "dataset_info", lambda self, name, revision=None: 1 / 0)
    with pytest.raises(ArtifactMissingError, match=r"hub.path 'akariasai/PopQA': neither a local folder nor found"):
        open_source(open_task("popqa"), QaSourceConfig()).identity(("test",))


def test_what_goes_wrong_on_the_hub_is_one_line(tmp_path, datasets):
    write_lines(tmp_path / "d" / "test.jsonl", [{"question": "q", "answers": ["2018-05-18"]}])
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "test.jsonl").write_text('{"question": broken')
    for folder, split, message in (
        ("d", "nope", "split 'nope'): cannot be opened"),
        ("d", "test", "took texts for times; give its files under source.files"),
        ("e", "test", "cannot be "),
    ):
        source = open_source(CUSTOM, QaSourceConfig(hub=HubData(str(tmp_path / folder), splits={"test": split})))
        with pytest.raises(ArtifactError) as caught:
            list(source.iter_questions("test"))
        assert message in str(caught.value) and "\n" not in str(caught.value)


# --- Releases


def docs_questions(count, split):
    return [
        Question(f"d{i}#{split}", f"d{i}", "train", "default", "axis", f"What is {split} {i}?", ("1", "one"), "axis=1")
        for i in range(count)
    ]


@pytest.fixture
def docs(tmp_path) -> Path:
    folder = tmp_path / "questions"
    folder.mkdir()
    for split in ("train", "test"):
        write_questions(folder / f"questions-{split}.jsonl", docs_questions(3, split))
    return write_artifact(folder, "questions", {}, {}, [])


def test_questions_of_a_release(docs, tmp_path):
    source = open_source(open_task("docs"), QaSourceConfig(release="docs"), docs)
    assert isinstance(source, ReleaseSource) and source.splits == ("train", "test")
    (first, *rest) = source.iter_questions("test")
    assert first.question == QaQuestion(
        "d0#test", "What is test 0?", ("1", "one"), ("d0",), "default", "default axis", "d0"
    )
    assert len(rest) == 2 and first.passages == ()

    laid_out = tmp_path / "laid_out"
    laid_out.mkdir()
    for name, records in (("train-00000", []), ("test-00000", [0, 1]), ("test-00001", [2])):
        write_questions(laid_out / f"questions-{name}.jsonl", [docs_questions(3, "test")[i] for i in records])
    write_artifact(laid_out, "question_sequences", {}, {}, [("train-00000", 0), ("test-00000", 2), ("test-00001", 1)])
    assert list(ReleaseSource(laid_out).iter_questions("test")) == [first, *rest]
    with pytest.raises(ArtifactError, match="split train: expected questions, found none"):
        list(ReleaseSource(laid_out).iter_questions("train"))


def test_another_artifact_has_no_questions(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(ArtifactError, match="expected questions, found tokens"):
        ReleaseSource(write_artifact(tmp_path / "x", "tokens", {}, {}, []))


# --- Which source


def test_the_places_of_questions(tmp_path, docs):
    path = str(write_lines(tmp_path / "q.jsonl", RECORDS))
    own = TaskDefinition(name="mine", files={"test": (path,)}, hub=HubData("a/b", splits={"test": "test"}))
    assert isinstance(open_source(own, QaSourceConfig()), FilesSource)
    assert isinstance(open_source(own, QaSourceConfig(hub=own.hub)), HubSource)
    assert isinstance(open_source(own, QaSourceConfig(release="docs"), docs), ReleaseSource)
    elsewhere = open_source(own, QaSourceConfig(files={"dev": (path,)}))
    assert elsewhere.splits == ("dev",)
    with pytest.raises(ConfigError, match=r"task custom names no place of its questions; give source\.files"):
        open_source(CUSTOM, QaSourceConfig())
    with pytest.raises(ConfigError, match="need the release"):
        open_source(CUSTOM, QaSourceConfig(release="docs"))
