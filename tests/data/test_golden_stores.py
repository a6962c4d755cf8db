"""Artifacts written by older versions open, and say what they said (tests/golden/make_token_stores.py)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from retro.data.chunk_store import ChunkStore, open_chunk_store
from retro.data.document import document_key
from tests.golden.make_token_stores import make

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("token_stores_*"))


@pytest.fixture(scope="module", params=GOLDEN, ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest) -> Path:
    return request.param  # type: ignore[no-any-return]


def reference(content: dict) -> list[tuple[int, int, list[int]]]:
    """(document, offset in it, tokens to the end of the document) of every chunk in order."""
    out = []
    for document in content["order"]:
        tokens = content["documents"][document]["tokens"]
        out += [(document, i, tokens[i:]) for i in range(0, len(tokens), content["chunk_length"])]
    return out


def check(store: ChunkStore, content: dict) -> None:
    store.verify()
    store.tokens.verify()
    documents = content["documents"]
    assert store.tokens.num_documents == len(documents) and store.chunk_length == content["chunk_length"]
    offsets = np.asarray(store.tokens.document_offsets)
    for i, document in enumerate(documents):
        assert store.tokens.document_record(i) == document["record"]
        assert store.tokens.tokens(int(offsets[i]), int(offsets[i + 1])).tolist() == document["tokens"]
    keys = [document_key(d["record"]["id"]) for d in documents]
    assert np.asarray(store.tokens.document_keys).tolist() == keys
    groups = [
        document_key(d["record"]["group"]) if d["record"]["group"] else k for d, k in zip(documents, keys, strict=True)
    ]
    assert np.asarray(store.tokens.group_keys()).tolist() == groups
    assert store.tokens.document_order.tolist() == content["order"]
    expected = reference(content)
    assert store.num_chunks == len(expected)
    rows, mask = store.gather_neighbors(np.arange(len(expected)), 0)
    for (_, _, tokens), row, real in zip(expected, rows, mask, strict=True):
        assert row[real].tolist() == tokens[: 2 * store.chunk_length]
    places = np.array([(keys[d], offset) for d, offset, _ in expected], dtype=np.uint64)
    assert store.find(places[:, 0], places[:, 1].astype(np.int64)).tolist() == list(range(len(expected)))


def test_every_version_opens(golden: Path) -> None:
    content = json.loads((golden / "content.json").read_text())
    store = open_chunk_store(golden / content["folders"]["chunks"])
    check(store, content)
    assert store.tokens.pad_id == 0


def test_the_newest_version_is_written_byte_for_byte(tmp_path: Path) -> None:
    """Whoever changes a byte of these formats raises the version of the stage and adds a golden folder."""
    newest = GOLDEN[-1]
    content = json.loads((newest / "content.json").read_text())
    tokenizer = shutil.copytree(newest / content["folders"]["tokenizer"], tmp_path / content["folders"]["tokenizer"])
    made = make(tmp_path, tokenizer)
    for part in ("tokens", "chunks"):
        expected = newest / content["folders"][part]
        assert made[part].name == expected.name
        files = sorted(p.name for p in expected.iterdir())
        assert files == sorted(p.name for p in made[part].iterdir() if p.is_file())
        for name in files:
            assert (made[part] / name).read_bytes() == (expected / name).read_bytes(), name


def test_a_copy_with_other_content_would_be_noticed(golden: Path, tmp_path: Path) -> None:
    """The comparison above can fail."""
    shutil.copytree(golden, tmp_path / "copy")
    content = json.loads((golden / "content.json").read_text())
    content["documents"][1]["tokens"][2] += 1
    with pytest.raises(AssertionError):
        check(open_chunk_store(tmp_path / "copy" / content["folders"]["chunks"]), content)
