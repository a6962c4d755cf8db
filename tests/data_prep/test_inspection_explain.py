"""explain: the field, the input, or the corpus at the root of a difference."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from data_prep.inspection.explain import explain, explain_folders
from data_prep.inspection.lineage import causes, made_by_folder
from data_prep.pipeline import run
from retro.artifacts.manifest import read_manifest
from retro.cli.main import main
from retro.config.errors import ArtifactError, ArtifactMissingError
from retro.config.loader import dump_yaml
from retro.config.preparation import PrepConfig
from tests.data_prep.inspected import configure, settings, write_corpus


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[PrepConfig, PrepConfig, PrepConfig]:
    """One root: a preparation, one with another vocabulary, one of a corpus that has grown."""
    base = tmp_path_factory.mktemp("explain")
    exact = {"kind": "vectors", "vectors": {"factory": "exact"}}
    values = settings(write_corpus(base / "corpus"), base / "prep", index=exact, query_splits=["test"])
    first = configure(values)
    second = configure({**values, "tokenizer": {"train": {"vocab_size": 300}}})
    grown = {**values["ingest"], "jsonl": {**values["ingest"]["jsonl"], "folder": str(write_corpus(base / "more", 66))}}
    third = configure({**values, "ingest": grown})
    for config in (first, second, third):
        run(config, progress=False)
    return first, second, third


def neighbors_of(config: PrepConfig) -> Path:
    release = json.loads((Path(config.root) / "release.json").read_text())
    assert release
    from data_prep.pipeline import iter_folders

    return next(folder for step, _, folder in iter_folders(config) if step.name == "find_neighbors test")


def test_down_to_the_field_that_is_the_root_of_it(two):
    one, other = neighbors_of(two[0]), neighbors_of(two[1])
    lines = list(explain_folders(one, other))
    assert lines[0].startswith(f"{one.name} differs from {other.name}")
    # One cause, by a shortest way, however many ways lead to the tokenizer.
    assert len(lines) == 2
    assert "<- input tokenizer: config " in lines[1] and lines[1].endswith("vocab_size 320 / 300")
    assert lines[1].startswith(("  input database <- input tokens <- ", "  input queries <- input tokens <- "))


def test_a_corpus_that_changed_says_how(two):
    lines = list(explain_folders(neighbors_of(two[0]), neighbors_of(two[2])))
    (change,) = [line for line in lines if "the corpus changed" in line]
    assert "input documents" in change and "files 2 both" in change and "bytes" in change and "sha256" in change
    assert "2 file(s) with another content (part-0.jsonl, part-1.jsonl)" in change


def test_files_that_came_and_went(two, tmp_path):
    corpus = tmp_path / "corpus"
    shutil.copytree(two[0].ingest.jsonl.folder, corpus)
    for number in range(5):
        shutil.copy(corpus / "part-0.jsonl", corpus / f"new-{number}.jsonl")
    (corpus / "part-0.jsonl").unlink()
    jsonl = dataclasses.replace(two[0].ingest.jsonl, folder=str(corpus))
    config = dataclasses.replace(two[0], ingest=dataclasses.replace(two[0].ingest, jsonl=jsonl))
    lines = [line for line in explain(config) if "the corpus changed" in line]
    came = "5 file(s) of the first alone (new-0.jsonl, new-1.jsonl, new-2.jsonl, ...)"
    went = "1 file(s) of the second alone (part-0.jsonl)"
    # Beside the two ingests that are there: of this corpus as it was, and of one with another content.
    assert [came in line and went in line for line in lines] == [True, True]
    assert sorted("1 file(s) with another content (part-1.jsonl)" in line for line in lines) == [False, True]


def test_own_fields_come_first_and_all_of_them(two):
    chunk = two[0].chunk
    first, *_ = two
    config = dataclasses.replace(
        first,
        chunk=dataclasses.replace(chunk, chunk_length=8),
        neighbors=dataclasses.replace(first.neighbors, keep=5, candidates=30),
    )
    run(config, progress=False)
    found = causes(made_by_folder(neighbors_of(first)), made_by_folder(neighbors_of(config)))
    own = [cause.what for cause in found if not cause.path]
    assert "config candidates 40 / 30" in own and "config keep 6 / 5" in own
    deeper = [str(cause) for cause in found if cause.path]
    assert any("config chunk_length 16 / 8" in text for text in deeper)
    assert len(deeper) == len(set(deeper))


def test_the_same_and_unlike_artifacts(two):
    one = neighbors_of(two[0])
    assert "are the same artifact" in next(explain_folders(one, one))
    database = Path(two[0].root) / next(p.name for p in Path(two[0].root).glob("embed-*"))
    assert "made by stage find_neighbors / embed" in "\n".join(explain_folders(one, database))


def test_an_edited_manifest_is_called_so(two, tmp_path):
    one = neighbors_of(two[0])
    copy = tmp_path / one.name
    shutil.copytree(one, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "0" * 16}))
    assert "an edited manifest" in "\n".join(explain_folders(one, copy))


def test_inputs_that_are_not_there_end_the_search_in_words(two, tmp_path):
    for config in two[:2]:
        folder = neighbors_of(config)
        shutil.copytree(folder, tmp_path / folder.name)
    lines = list(explain_folders(tmp_path / neighbors_of(two[0]).name, tmp_path / neighbors_of(two[1]).name))
    assert any("input database: fingerprint" in line and "no further" in line for line in lines)


def test_names_below_the_root_and_names_of_nothing(two):
    one, other = neighbors_of(two[0]), neighbors_of(two[1])
    assert list(explain_folders(one.name, other.name, two[0].root)) == list(explain_folders(one, other))
    with pytest.raises(ArtifactMissingError, match=r"nowhere or .*nowhere: artifact folder not found"):
        list(explain_folders("nowhere", one, two[0].root))
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        list(explain_folders(two[0].root, one))


def test_missing_steps_are_explained_by_those_that_are_there(two):
    config = dataclasses.replace(two[0], chunk=dataclasses.replace(two[0].chunk, chunk_length=32))
    lines = list(explain(config))
    assert sum("(missing)" in line for line in lines) == 1
    assert any("config chunk_length 32 / 16" in line for line in lines)
    assert any(line.startswith("waiting for their inputs: ") for line in lines)
    broken = Path(config.root) / "chunk-0123456789abcdef"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    try:
        assert any(line.startswith(f"  not {broken.name}: it cannot be opened") for line in explain(config))
    finally:
        shutil.rmtree(broken)


def test_the_command(two, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(two[0]))
    one, other = neighbors_of(two[0]).name, neighbors_of(two[1]).name
    assert main(["prep", "explain", str(path), "--folder", one, "--against", other]) == 0
    assert "vocab_size 320 / 300" in capsys.readouterr().out
    assert main(["prep", "explain", str(path)]) == 0
    assert capsys.readouterr().out.count("(done)") == len(list(explain(two[0])))
    assert main(["prep", "explain", str(path), "--folder", one]) == 2
    assert "expected both, found one" in capsys.readouterr().err
    assert main(["prep", "explain", str(path), "--folder", one, "--against", "x"]) == 3
    assert capsys.readouterr().err.count("\n") == 1
    assert read_manifest(neighbors_of(two[0])).kind == "neighbors"
