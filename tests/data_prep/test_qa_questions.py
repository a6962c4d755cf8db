"""Stage qa_questions: order, splits made of others, limits, ids, figures; the same bytes after kills."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_prep.qa_questions import QaQuestionsStage, plan_splits, release_questions
from data_prep.runner import Executor, run_stage
from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactError, ArtifactMissingError, ConfigError
from retro.config.qa_source import QaSourceConfig, SplitOff
from retro.data.qa.question_file import open_source_questions
from retro.data.qa.task import TaskDefinition, open_task
from tests.data_prep.corpora import write_lines

DEV = {"dev": SplitOff("train", 0.25)}


def records(count, split, **values):
    return [
        {"id": f"{split}{i}", "question": f"Question {split} {i}?", "answers": [f"a{i % 7}", "x"], **values}
        for i in range(count)
    ]


@pytest.fixture
def files(tmp_path):
    train = [{**r, "evidence": [f"d{i // 4}"]} for i, r in enumerate(records(200, "train", group="g"))]
    return {
        "train": (str(write_lines(tmp_path / "train.jsonl", train)),),
        "test": (str(write_lines(tmp_path / "test.jsonl", records(30, "test", relation="r", popularity=3))),),
    }


def task(**values):
    return TaskDefinition(name="mine", fields=open_task("custom").fields, **values)


def make(root, definition, source, workers=0):
    executor = Executor(workers) if workers else None
    return open_source_questions(run_stage(QaQuestionsStage(definition, source), root, executor, progress=False))


def ids(questions, split):
    return [item.question.id for item in questions.iter(split)]


def test_questions_in_their_splits(files, tmp_path):
    found = make(tmp_path, task(split_off=DEV), QaSourceConfig(files=files))
    assert found.splits == ("train", "dev", "test") and found.task == task(split_off=DEV)
    assert sorted(ids(found, "train") + ids(found, "dev")) == sorted(f"train{i}" for i in range(200))
    assert sorted(ids(found, "test")) == sorted(f"test{i}" for i in range(30))
    assert 30 <= found.count("dev") <= 70
    assert found.figures["train"]["groups"] == {"names": 1, "common": [["g", found.count("train")]]}
    assert found.figures["test"] == {
        "split": "test",
        "made_of": None,
        "of": 30,
        "questions": 30,
        "answers": 60,
        "with_evidence": 0,
        "with_passages": 0,
        "with_popularity": 30,
        "asked_in_another_split": 0,
        "groups": {"names": 0, "common": []},
        "relations": {"names": 1, "common": [["r", 30]]},
    }
    assert found.figures["dev"]["made_of"] == "train" and found.figures["dev"]["with_evidence"] == found.count("dev")
    with pytest.raises(ConfigError, match=r"expected a split of these questions \(train, dev, test\), found 'valid'"):
        found.read("valid")


def test_the_order_is_seeded_and_not_the_files(files, tmp_path):
    found = make(tmp_path / "a", task(), QaSourceConfig(files=files))
    order = ids(found, "test")
    assert order != [f"test{i}" for i in range(30)]
    lines = Path(files["test"][0]).read_bytes().splitlines()
    Path(files["test"][0]).write_bytes(b"\n".join(reversed(lines)) + b"\n")
    assert ids(make(tmp_path / "b", task(), QaSourceConfig(files=files)), "test") == order
    other = ids(make(tmp_path / "c", task(), QaSourceConfig(files=files, seed=1)), "test")
    assert other != order and sorted(other) == sorted(order)


def test_limits_take_the_first_of_the_order(files, tmp_path):
    order = ids(make(tmp_path, task(), QaSourceConfig(files=files)), "train")
    some = make(tmp_path, task(), QaSourceConfig(files=files, max_questions={"train": 50}))
    assert ids(some, "train") == order[:50]
    assert some.figures["train"]["of"] == 200 and some.figures["train"]["questions"] == 50


def test_what_is_left_of_a_split_does_not_depend_on_what_is_wanted(files, tmp_path):
    everything = make(tmp_path, task(split_off=DEV), QaSourceConfig(files=files))
    for splits in (("train",), ("dev",), ("test", "dev")):
        some = make(tmp_path, task(split_off=DEV), QaSourceConfig(files=files, splits=splits))
        assert set(some.splits) == set(splits)
        assert all(ids(some, split) == ids(everything, split) for split in splits)
    only = QaQuestionsStage(task(split_off=DEV), QaSourceConfig(files=files, splits=("test",)))
    assert [shard.name for shard in only.plan()] == ["test-00000"]


def test_a_split_of_the_source_is_not_made(files, tmp_path):
    dev = {"dev": (str(write_lines(tmp_path / "dev.jsonl", records(5, "dev"))),)}
    found = make(tmp_path, task(split_off=DEV), QaSourceConfig(files={**files, **dev}))
    assert found.count("dev") == 5 and found.count("train") == 200


def test_the_same_question_is_never_on_both_sides(tmp_path):
    """Twins differ in case and white space only."""
    pairs = [{"question": q, "answers": ["a"]} for i in range(60) for q in (f"Who is {i}?", f"WHO  is {i}?")]
    path = str(write_lines(tmp_path / "train.jsonl", pairs))
    found = make(tmp_path, task(split_off=DEV), QaSourceConfig(files={"train": (path,)}))
    words = {
        split: {" ".join(i.question.question.lower().split()) for i in found.iter(split)} for split in found.splits
    }
    assert words["train"] & words["dev"] == set() and len(words["train"] | words["dev"]) == 60


def test_documents_are_never_on_both_sides(files, tmp_path):
    by = {"dev": SplitOff("train", 0.25, by="evidence")}
    found = make(tmp_path, task(split_off=by), QaSourceConfig(files=files))
    documents = {split: Counter(i.question.evidence[0] for i in found.iter(split)) for split in ("train", "dev")}
    assert documents["train"].keys() & documents["dev"].keys() == set()
    assert set((documents["train"] + documents["dev"]).values()) == {4}
    # Where none is known, the question decides.
    plain = make(tmp_path, task(split_off={"dev": SplitOff("test", 0.25, by="evidence")}), QaSourceConfig(files=files))
    assert 0 < plain.count("dev") < 30


def test_shares_and_seeds_of_what_is_split_off(files, tmp_path):
    first = make(tmp_path, task(split_off={"dev": SplitOff("train", 0.5)}), QaSourceConfig(files=files))
    other = make(tmp_path, task(split_off={"dev": SplitOff("train", 0.5, seed=1)}), QaSourceConfig(files=files))
    assert 70 < first.count("dev") < 130 and set(ids(first, "dev")) != set(ids(other, "dev"))
    # Two splits of the same one have nothing in common.
    two = make(
        tmp_path,
        task(split_off={"a": SplitOff("train", 0.3), "b": SplitOff("train", 0.3)}),
        QaSourceConfig(files=files),
    )
    assert two.splits == ("train", "test", "a", "b")
    assert sum(two.count(split) for split in ("train", "a", "b")) == 200


def test_questions_asked_in_two_splits_are_counted(tmp_path):
    files = {
        split: (str(write_lines(tmp_path / f"{split}.jsonl", [{"question": q, "answers": ["a"]} for q in asked])),)
        for split, asked in {"train": ["x", "y", "z"], "test": ["X", "w"]}.items()
    }
    found = make(tmp_path, task(), QaSourceConfig(files=files))
    assert found.figures["test"]["asked_in_another_split"] == 1
    assert found.figures["train"]["asked_in_another_split"] == 1


def test_an_id_in_two_splits_is_a_mistake(tmp_path):
    path = str(write_lines(tmp_path / "q.jsonl", records(2, "q")))
    with pytest.raises(
        ArtifactError, match="expected in one split, found in train and test; correct the files, or set"
    ):
        make(tmp_path, task(), QaSourceConfig(files={"train": (path,), "test": (path,)}))
    source = QaSourceConfig(files={"train": (path,), "test": (path,)}, fields={"id": None})
    assert make(tmp_path, task(), source).count("test") == 2


def test_a_split_without_a_question_is_a_mistake(tmp_path):
    path = str(write_lines(tmp_path / "q.jsonl", records(1, "q")))
    with pytest.raises(ArtifactError, match=r"no question is left for it.*source\.splits=\[train\]"):
        make(tmp_path, task(split_off=DEV), QaSourceConfig(files={"train": (path,)}))


def test_the_plan_of_splits():
    plan = plan_splits(("test", "zoo", "train"), DEV)
    assert plan.wanted == ("train", "dev", "test", "zoo") and plan.read == ("train", "test", "zoo")
    assert plan_splits(("test",), DEV).wanted == ("test",)  # nothing to make it of
    assert plan_splits(("train",), DEV, ("dev",)).read == ("train",)
    assert plan_splits(("train",), DEV, ("train",)).made == DEV
    with pytest.raises(ConfigError, match="splits: expected some of train, dev, found 'test'"):
        plan_splits(("train",), DEV, ("test",))


def test_limits_of_splits_that_are_not_made(files):
    with pytest.raises(
        ConfigError, match=r"max_questions: expected splits that are prepared \(train, test\), found 'dev'"
    ):
        QaQuestionsStage(task(), QaSourceConfig(files=files, max_questions={"dev": 3}))


CHANGES = [
    {"seed": 1},
    {"passages": 3},
    {"max_questions": {"train": 3}},
    {"splits": ("train",)},
    {"fields": {"group": None}},
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_option_changes_the_fingerprint(files, change):
    plain = QaQuestionsStage(task(), QaSourceConfig(files=files)).fingerprint()
    assert QaQuestionsStage(task(), QaSourceConfig(files=files, **change)).fingerprint() != plain


def test_the_fingerprint_is_of_task_and_content(files, tmp_path):
    plain = QaQuestionsStage(task(), QaSourceConfig(files=files)).fingerprint()
    assert QaQuestionsStage(task(version=2), QaSourceConfig(files=files)).fingerprint() != plain
    assert QaQuestionsStage(task(page="other words"), QaSourceConfig(files=files)).fingerprint() == plain
    moved = {}
    for split, (name,) in files.items():
        (tmp_path / "moved").mkdir(exist_ok=True)
        moved[split] = (str(Path(name).rename(tmp_path / "moved" / Path(name).name)),)
    assert QaQuestionsStage(task(), QaSourceConfig(files=moved)).fingerprint() == plain


def content(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_workers_and_a_torn_run_give_the_same_bytes(files, tmp_path, monkeypatch):
    definition, source = task(split_off=DEV), QaSourceConfig(files=files)
    clean = content(make(tmp_path / "clean", definition, source).folder)
    assert content(make(tmp_path / "two", definition, source, workers=2).folder) == clean

    original = QaQuestionsStage.run_shard
    read = []

    def torn(self, shard, out):
        read.append(shard.name)
        if len(read) == 2:
            raise ArtifactError("the disk is gone")
        return original(self, shard, out)

    monkeypatch.setattr(QaQuestionsStage, "run_shard", torn)
    with pytest.raises(ArtifactError, match="the disk is gone"):
        make(tmp_path / "torn", definition, source)
    assert content(make(tmp_path / "torn", definition, source).folder) == clean
    assert read.count("train-00000") == 1  # what was read is not read again


def test_questions_that_cannot_be_read_name_file_and_line(tmp_path):
    path = write_lines(tmp_path / "q.jsonl", [*records(2, "q"), {"question": "q"}])
    with pytest.raises(ArtifactError, match=rf"{path}:3: answers: no such field"):
        make(tmp_path, task(), QaSourceConfig(files={"test": (str(path),)}))


def test_a_release_without_questions(tmp_path, monkeypatch):
    import data_prep.qa_questions as module

    release = SimpleNamespace(questions={"docs": Path("folder")})
    monkeypatch.setattr(module, "open_release", lambda path: release)
    assert release_questions(tmp_path, "docs") == Path("folder")
    with pytest.raises(ArtifactMissingError, match="no questions 'faq' in the release; it has docs"):
        release_questions(tmp_path, "faq")


def test_the_task_lies_beside_the_questions(files, tmp_path):
    found = make(tmp_path, task(page="p", licence="MIT"), QaSourceConfig(files=files))
    stored = json.loads((found.folder / "task.json").read_text())
    assert stored["licence"] == "MIT" and "page" not in stored and "files" not in stored
    assert open_manifest(found.folder).kind == "qa_questions"
