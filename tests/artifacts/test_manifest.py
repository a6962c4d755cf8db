from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from retro.artifacts.atomic import atomic_path, write_json_atomic
from retro.artifacts.fingerprint import canonical_json, fingerprint
from retro.artifacts.manifest import (
    MANIFEST_NAME,
    Manifest,
    describe_file,
    input_path,
    open_manifest,
    verify_files,
    write_manifest,
)
from retro.config.errors import (
    ArtifactCorruptError,
    ArtifactMismatchError,
    ArtifactMissingError,
    ArtifactUnfinishedError,
)


def make(folder: Path, kind: str = "numbers", inputs: dict | None = None, mark: str = "f" * 16) -> Manifest:
    folder.mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"12345678")
    files = [describe_file(folder / "a.bin")]
    manifest = Manifest(
        kind, "stage", 1, mark, {}, inputs or {}, [dict(name="0", rows=8, files=files, stats={})], [], {}
    )
    write_manifest(folder, manifest)
    return manifest


def test_round_trip(tmp_path: Path) -> None:
    manifest = make(tmp_path / "x")
    assert open_manifest(tmp_path / "x", "numbers") == manifest
    assert manifest.rows == 8 and verify_files(tmp_path / "x", manifest) == []


def test_missing_unfinished_foreign(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError, match="not found"):
        open_manifest(tmp_path / "x")
    make(tmp_path / "x")
    with pytest.raises(ArtifactMismatchError, match="expected an artifact of kind 'tokens', found 'numbers'"):
        open_manifest(tmp_path / "x", "tokens")
    (tmp_path / "x" / MANIFEST_NAME).unlink()
    with pytest.raises(ArtifactUnfinishedError, match="unfinished"):
        open_manifest(tmp_path / "x")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": 1}', '{"format": "x"}'])
def test_unreadable_manifest_is_corrupt(tmp_path: Path, content: str) -> None:
    make(tmp_path / "x")
    (tmp_path / "x" / MANIFEST_NAME).write_text(content)
    with pytest.raises(ArtifactCorruptError, match=r"manifest\.json"):
        open_manifest(tmp_path / "x")


def test_newer_format_is_a_mismatch_not_corruption(tmp_path: Path) -> None:
    make(tmp_path / "x")
    data = json.loads((tmp_path / "x" / MANIFEST_NAME).read_text())
    write_json_atomic(tmp_path / "x" / MANIFEST_NAME, {**data, "format": 99})
    with pytest.raises(ArtifactMismatchError, match="format 1 or older, found 99"):
        open_manifest(tmp_path / "x")


def test_truncated_and_missing_files_are_named_with_sizes(tmp_path: Path) -> None:
    make(tmp_path / "x")
    (tmp_path / "x" / "a.bin").write_bytes(b"1234")
    with pytest.raises(ArtifactCorruptError, match=r"a\.bin: expected 8 bytes, found 4"):
        open_manifest(tmp_path / "x")
    (tmp_path / "x" / "a.bin").unlink()
    with pytest.raises(ArtifactCorruptError, match=r"a\.bin: recorded in the manifest but missing"):
        open_manifest(tmp_path / "x")


def test_altered_bytes_are_found_by_verify_and_left_alone(tmp_path: Path) -> None:
    manifest = make(tmp_path / "x")
    (tmp_path / "x" / "a.bin").write_bytes(b"1234567X")
    assert len(verify_files(tmp_path / "x", open_manifest(tmp_path / "x"))) == 1
    assert (tmp_path / "x" / "a.bin").read_bytes() == b"1234567X" and manifest.rows == 8


def test_a_hostile_file_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    manifest = make(tmp_path / "x")
    evil = dataclasses.replace(manifest, files=[dict(name="../../etc/passwd", bytes=1, sha256="0")])
    write_manifest(tmp_path / "x", evil)
    with pytest.raises(ArtifactCorruptError, match="leaves the folder"):
        open_manifest(tmp_path / "x")


def test_inputs_are_followed_and_checked(tmp_path: Path) -> None:
    make(tmp_path / "a", "tokens", mark="a" * 16)
    inputs = {"tokens": dict(kind="tokens", fingerprint="a" * 16, path="../a")}
    manifest = make(tmp_path / "b", inputs=inputs)
    assert input_path(tmp_path / "b", manifest, "tokens") == tmp_path / "a"
    with pytest.raises(ArtifactMismatchError, match="records no input 'chunks'"):
        input_path(tmp_path / "b", manifest, "chunks")
    write_manifest(tmp_path / "a", dataclasses.replace(open_manifest(tmp_path / "a"), fingerprint="c" * 16))
    with pytest.raises(ArtifactMismatchError, match=f"was made from tokens {'a' * 16}, found {'c' * 16}"):
        input_path(tmp_path / "b", manifest, "tokens")


def test_fingerprint_depends_on_every_part_and_not_on_key_order() -> None:
    base = fingerprint("s", 1, {"a": 1, "b": 2}, {"x": "1"})
    assert base == fingerprint("s", 1, {"b": 2, "a": 1}, {"x": "1"}) and len(base) == 16
    others = [
        fingerprint("t", 1, {"a": 1, "b": 2}, {"x": "1"}),
        fingerprint("s", 2, {"a": 1, "b": 2}, {"x": "1"}),
        fingerprint("s", 1, {"a": 1, "b": 3}, {"x": "1"}),
        fingerprint("s", 1, {"a": 1, "b": 2}, {"x": "2"}),
    ]
    assert len({base, *others}) == 5
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("nan"))


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    write_json_atomic(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]
