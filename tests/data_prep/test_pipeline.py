"""The whole preparation: what it says about documents that it leaves out of the database."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.pipeline import run
from retro.config.loader import from_dict
from retro.config.preparation import PrepConfig

SPLITS = ("train", "train", "valid", "test", "database_only")


def prepare(folder: Path, **settings: object) -> None:
    lines = [
        json.dumps({"id": str(i), "text": f"Document {i} speaks of the number {i * 7}. " * 20, "split": split})
        for i, split in enumerate(SPLITS)
    ]
    (folder / "docs.jsonl").write_text("\n".join(lines) + "\n")
    values = {
        "root": str(folder / "data"),
        "ingest": {
            "reader": "jsonl",
            "jsonl": {"folder": str(folder), "id_field": "id", "files": ["docs.jsonl"]},
            "split": {"by": "field", "field": "split"},
        },
        "deduplicate": None,
        "tokenizer": {"kind": "train", "train": {"vocab_size": 300}},
        "chunk": {"chunk_length": 16},
        "index": {"kind": "bm25"},
        "neighbors": {"candidates": 8, "keep": 2},
        "workers": 1,
        **settings,
    }
    run(from_dict(PrepConfig, values), progress=False)


def test_documents_for_the_database_alone_that_are_not_in_it_are_noted(tmp_path, capsys: pytest.CaptureFixture):
    prepare(tmp_path)
    assert capsys.readouterr().err == (
        "note: 1 documents of the split database_only will not be retrieved, the database is made of train; to have "
        "them in it set database_splits=[train,database_only]\n"
    )
    prepare(tmp_path, database_splits=["train", "database_only"])
    assert capsys.readouterr().err == ""
