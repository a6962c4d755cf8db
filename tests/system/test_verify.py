"""`retro prep verify` looks at what artifacts mean, not only at their checksums."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retro.artifacts.fingerprint import sha256_file
from retro.artifacts.release import open_release
from retro.cli.main import main
from retro.data.chunk_store import open_chunk_store
from tests.system.workplace import copy


def rewrite(folder: Path, file: Path, array: np.ndarray) -> None:
    """Another content, recorded in the manifest as if the stage had made it."""
    before = sha256_file(file)
    np.save(file, array)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(before, sha256_file(file)))


def test_a_neighbor_of_the_query_s_own_document_is_found(place, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = copy(place.prep, tmp_path / "prep")
    release = open_release(root)
    folder = release.split("train").neighbors
    assert folder is not None
    command = ["prep", "verify", str(place.prep_config), f"root={root}", "--fraction", "0"]
    assert main(command) == 0
    documents = open_chunk_store(release.database_chunks).documents(np.arange(9))
    row = int(np.flatnonzero(documents[1:] == documents[:-1])[0])
    file = sorted(folder.glob("ids-*.npy"))[0]
    ids = np.load(file)
    ids[row, 0] = row + 1
    rewrite(folder, file, ids)
    capsys.readouterr()
    assert main(command) == 3
    assert f"row {row} has a neighbor of its own document" in capsys.readouterr().err


def test_a_chunk_across_the_end_of_its_document_is_found(place, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = copy(place.prep, tmp_path / "prep")
    folder = open_release(root).split("test").chunks
    file = sorted(folder.glob("spans-*.npy"))[0]
    spans = np.load(file)
    spans[-1] += 1
    rewrite(folder, file, spans)
    assert main(["prep", "verify", str(place.prep_config), f"root={root}", "--fraction", "0"]) == 3
    assert "entries that do not fit the tokens" in capsys.readouterr().err
