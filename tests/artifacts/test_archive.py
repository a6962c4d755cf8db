"""Export and import of a release: the same bytes for equal releases, strict reading, nothing half-written."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard

from retro.artifacts import archive as archive_module
from retro.artifacts import archive_import, archive_io
from retro.artifacts.archive import export_release
from retro.artifacts.archive_format import BLOCK, ArchiveReader, archive_size, header, parse_index
from retro.artifacts.archive_import import import_release
from retro.artifacts.closure import iter_closure
from retro.artifacts.manifest import open_manifest, verify_files
from retro.artifacts.release import open_release
from retro.cli.main import main
from retro.config.errors import (
    ArtifactCorruptError,
    ArtifactMismatchError,
    ArtifactMissingError,
    ConfigError,
    RetroError,
)
from retro.data.chunk_store import open_chunk_store
from retro.data.neighbor_table import open_neighbor_table
from tests.train.releases import build_release


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return build_release(tmp_path / "made")


def export(release: Path, path: Path) -> bytes:
    export_release(release, path, progress=False)
    return path.read_bytes()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", [".tar", ".tar.zst"])
def test_a_release_comes_back_and_needs_its_source_no_more(release: Path, tmp_path: Path, suffix: str) -> None:
    archive, before = tmp_path / f"a{suffix}", open_release(release)
    chunks = open_chunk_store(before.database_chunks)
    tokens = chunks.gather(np.arange(chunks.num_chunks), 0)[0]
    export(release, archive)
    shutil.rmtree(release.parent)
    path = import_release(archive, tmp_path / "here" / "again", progress=False)
    shutil.move(tmp_path / "here" / "again", tmp_path / "elsewhere")
    opened = open_release(tmp_path / "elsewhere")
    assert path == tmp_path / "here" / "again" / "release.json"
    assert opened.fingerprint == before.fingerprint and set(opened.splits) == {"train", "valid"}
    database = open_chunk_store(opened.database_chunks)
    np.testing.assert_array_equal(database.gather(np.arange(database.num_chunks), 0)[0], tokens)
    split = opened.split("valid")
    assert split.neighbors is not None
    open_neighbor_table(split.neighbors, open_chunk_store(split.chunks), database).verify()
    assert all(verify_files(folder, manifest) == [] for folder, manifest in iter_closure(opened))


def test_equal_releases_give_equal_bytes_wherever_they_lie(release: Path, tmp_path: Path) -> None:
    other = build_release(tmp_path / "some" / "other place")
    for path in other.parent.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    first = export(release, tmp_path / "a.tar")
    assert export(other, tmp_path / "b.tar") == first
    assert export(release, tmp_path / "a.tar.zst") == export(other, tmp_path / "b.tar.zst")
    assert str(tmp_path).encode() not in first
    # What was imported is exported to the same archive.
    again = import_release(tmp_path / "a.tar", tmp_path / "imported", progress=False)
    assert export(again, tmp_path / "c.tar") == first


def test_the_size_is_known_before_and_any_tar_reads_it(release: Path, tmp_path: Path) -> None:
    index = export_release(release, tmp_path / "a.tar", progress=False)
    assert (tmp_path / "a.tar").stat().st_size == archive_size(index)
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = tar.getmembers()
        assert members[0].name == "index.json" and [m.name for m in members[1:]] == [f.name for f in index.files]
        assert all(m.isreg() and m.mtime == 0 and m.uid == m.gid == 0 for m in members)


def test_artifacts_of_several_roots_become_one_folder(tmp_path: Path) -> None:
    release = build_release(tmp_path / "a")
    (tmp_path / "far" / "away").mkdir(parents=True)
    shutil.move(tmp_path / "a" / "neighbors-train", tmp_path / "far" / "away" / "n")
    manifest = tmp_path / "far" / "away" / "n" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"path": "../', '"path": "../../../a/'))
    content = json.loads(release.read_text())
    content["splits"]["train"]["neighbors"]["path"] = "../far/away/n"
    release.write_text(json.dumps(content))
    export(release, tmp_path / "a.tar")
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "far")
    split = open_release(import_release(tmp_path / "a.tar", tmp_path / "b", progress=False)).split("train")
    assert split.neighbors is not None and split.neighbors.parent == tmp_path / "b"
    for entry in open_manifest(split.neighbors).inputs.values():
        assert (split.neighbors / entry["path"]).is_dir()


def test_a_damaged_artifact_is_not_exported(release: Path, tmp_path: Path) -> None:
    file = open_release(release).database_tokens / "tokens-00000.bin"
    data = bytearray(file.read_bytes())
    data[7] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactCorruptError, match=r"tokens-00000\.bin: expected \d+ bytes with sha256"):
        export(release, tmp_path / "a.tar")
    assert names_in(tmp_path) == ["made"]


def test_targets_that_exist_are_left_alone(release: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_text("mine")
    with pytest.raises(ConfigError, match=r"a\.tar: exists already"):
        export(release, tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_text() == "mine"
    with pytest.raises(ConfigError, match=r"expected the name of an archive"):
        export(release, tmp_path / "a.zip")
    with pytest.raises(ConfigError, match="no such folder"):
        export(release, tmp_path / "nowhere" / "a.tar")
    export(release, tmp_path / "b.tar")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    with pytest.raises(ConfigError, match="full: exists already"):
        import_release(tmp_path / "b.tar", tmp_path / "full", progress=False)
    (tmp_path / "empty").mkdir()
    import_release(tmp_path / "b.tar", tmp_path / "empty", progress=False)
    with pytest.raises(ArtifactMissingError, match="archive not found"):
        import_release(tmp_path / "c.tar", tmp_path / "new", progress=False)


def test_no_room_is_said_before_the_work(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(release, tmp_path / "b.tar")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archive_io.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ConfigError, match=r"expected .* MB of free space, found 0\.0 MB"):
        export(release, tmp_path / "a.tar")
    with pytest.raises(ConfigError, match="of free space"):
        import_release(tmp_path / "b.tar", tmp_path / "new", progress=False)
    assert names_in(tmp_path) == ["b.tar", "made"]


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    export(release, tmp_path / "b.tar")
    monkeypatch.setattr(archive_module, "_write", full)
    with pytest.raises(RetroError, match="the disk is full; nothing was left behind"):
        export(release, tmp_path / "a.tar")
    monkeypatch.setattr(archive_import.os, "fsync", full)
    with pytest.raises(RetroError, match="the disk is full; nothing was left behind"):
        import_release(tmp_path / "b.tar", tmp_path / "new", progress=False)
    assert names_in(tmp_path) == ["b.tar", "made"]


@pytest.mark.parametrize("suffix", [".tar", ".tar.zst"])
def test_a_truncated_archive_is_refused_at_every_length(release: Path, tmp_path: Path, suffix: str) -> None:
    data = export(release, tmp_path / f"a{suffix}")
    for length in [0, 1, BLOCK, BLOCK + 1, *range(2 * BLOCK, len(data) - 1, max(1, len(data) // 17)), len(data) - 1]:
        (tmp_path / f"b{suffix}").write_bytes(data[:length])
        with pytest.raises(ArtifactCorruptError, match=rf"b\{suffix}"):
            import_release(tmp_path / f"b{suffix}", tmp_path / "new", progress=False)
    assert names_in(tmp_path) == [f"a{suffix}", f"b{suffix}", "made"]


def test_every_altered_byte_is_noticed(release: Path, tmp_path: Path) -> None:
    data = export(release, tmp_path / "a.tar")
    generator = np.random.default_rng(0)
    for place in [5, 100, *generator.integers(0, len(data), 30).tolist()]:
        altered = bytearray(data)
        altered[place] ^= 0x21
        (tmp_path / "b.tar").write_bytes(altered)
        with pytest.raises((ArtifactCorruptError, ArtifactMismatchError)):
            import_release(tmp_path / "b.tar", tmp_path / "new", progress=False)
            pytest.fail(f"byte {place} was altered")
    assert names_in(tmp_path) == ["a.tar", "b.tar", "made"]


def test_what_is_appended_is_refused(release: Path, tmp_path: Path) -> None:
    data = export(release, tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(data + b"more")
    with pytest.raises(ArtifactCorruptError, match="altered"):
        import_release(tmp_path / "b.tar", tmp_path / "new", progress=False)
    (tmp_path / "b.tar.zst").write_bytes(zstandard.compress(data) + zstandard.compress(b"more"))
    with pytest.raises(ArtifactCorruptError, match="altered"):
        import_release(tmp_path / "b.tar.zst", tmp_path / "new", progress=False)
    (tmp_path / "c.tar.zst").write_bytes(zstandard.compress(data) + b"more")
    with pytest.raises(ArtifactCorruptError, match="altered"):
        import_release(tmp_path / "c.tar.zst", tmp_path / "new", progress=False)


def rewrite(data: bytes, change: Callable[[list[tarfile.TarInfo], dict[str, bytes], dict], None]) -> bytes:
    """The archive with members and index as `change` leaves them."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
        contents = {m.name: tar.extractfile(m).read() for m in members}  # type: ignore[union-attr]
    index = json.loads(contents["index.json"])
    change(members, contents, index)
    contents["index.json"] = json.dumps(index).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for member in members:
            content = contents.get(member.name, b"") if member.isreg() else b""
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def rename_to(name: str) -> Callable:
    def change(members: list[tarfile.TarInfo], contents: dict[str, bytes], index: dict) -> None:
        contents[name] = contents[members[-1].name]
        members[-1].name = index["files"][-1]["name"] = name

    return change


def retype(kind: bytes) -> Callable:
    def change(members: list[tarfile.TarInfo], contents: dict[str, bytes], index: dict) -> None:
        members[-1].type, members[-1].linkname = kind, "/etc/passwd"

    return change


def drop(members: list[tarfile.TarInfo], contents: dict[str, bytes], index: dict) -> None:
    del members[-1]


def drop_everywhere(members: list[tarfile.TarInfo], contents: dict[str, bytes], index: dict) -> None:
    del members[-1], index["files"][-1]


def add(members: list[tarfile.TarInfo], contents: dict[str, bytes], index: dict) -> None:
    members.append(tarfile.TarInfo("more/more"))


def newer(members: list[tarfile.TarInfo], contents: dict[str, bytes], index: dict) -> None:
    index["format"] = 2


def twice(members: list[tarfile.TarInfo], contents: dict[str, bytes], index: dict) -> None:
    index["files"].append(index["files"][-1])


def bad_checksum(members: list[tarfile.TarInfo], contents: dict[str, bytes], index: dict) -> None:
    index["files"][-1]["sha256"] = "0" * 64


def other_content(members: list[tarfile.TarInfo], contents: dict[str, bytes], index: dict) -> None:
    """A file and its entry in the index are changed alike: the manifest still knows."""
    import hashlib

    name = next(n for n in contents if n.endswith("tokens-00000.bin"))
    contents[name] = contents[name][::-1]
    entry = next(f for f in index["files"] if f["name"] == name)
    entry["sha256"] = hashlib.sha256(contents[name]).hexdigest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_to("../evil"), "is not allowed in an archive"),
        (rename_to("/etc/evil"), "is not allowed in an archive"),
        (rename_to("a/../../evil"), "is not allowed in an archive"),
        (rename_to("a/b/c"), "is not allowed in an archive"),
        (rename_to("a\\..\\evil"), "is not allowed in an archive"),
        (rename_to(".hidden/x"), "is not allowed in an archive"),
        (retype(tarfile.SYMTYPE), "found a symbolic link"),
        (retype(tarfile.LNKTYPE), "found a hard link"),
        (retype(tarfile.CHRTYPE), "found a device"),
        (retype(tarfile.FIFOTYPE), "found a pipe"),
        (retype(tarfile.DIRTYPE), "found a folder"),
        (drop, "found the end of the archive"),
        (drop_everywhere, "recorded in the manifest but missing"),
        (add, "holds more than its index lists"),
        (newer, "expected archive format 1, found 2"),
        (twice, "listed twice"),
        (bad_checksum, "expected sha256 0000"),
        (other_content, "its index and the manifests in it differ"),
    ],
)
def test_archives_of_others_are_refused(release: Path, tmp_path: Path, change: Callable, message: str) -> None:
    # Stripped of what is the archive's own: a plain rewrite is as good as the original.
    data = export(release, tmp_path / "a.tar")
    (tmp_path / "same.tar").write_bytes(rewrite(data, lambda *_: None))
    import_release(tmp_path / "same.tar", tmp_path / "same", progress=False)
    (tmp_path / "b.tar").write_bytes(rewrite(data, change))
    with pytest.raises((ArtifactCorruptError, ArtifactMismatchError), match=message):
        import_release(tmp_path / "b.tar", tmp_path / "new", progress=False)
    assert names_in(tmp_path) == ["a.tar", "b.tar", "made", "same", "same.tar"]


def test_a_release_that_points_outside_the_archive_is_refused(release: Path, tmp_path: Path) -> None:
    import hashlib

    data = export(release, tmp_path / "a.tar")
    outside = open_release(release).tokenizer

    def change(members: list[tarfile.TarInfo], contents: dict[str, bytes], index: dict) -> None:
        content = json.loads(contents["release.json"])
        content["tokenizer"]["path"] = str(outside)
        contents["release.json"] = json.dumps(content).encode()
        index["files"][0] |= {
            "bytes": len(contents["release.json"]),
            "sha256": hashlib.sha256(contents["release.json"]).hexdigest(),
        }

    (tmp_path / "b.tar").write_bytes(rewrite(data, change))
    with pytest.raises(ArtifactCorruptError, match="names a folder outside the archive"):
        import_release(tmp_path / "b.tar", tmp_path / "new", progress=False)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"kind": "x"}', b"[" * 100000])
def test_an_index_that_is_none(content: bytes) -> None:
    with pytest.raises(ArtifactCorruptError, match=r"index\.json is not one of"):
        parse_index(content, "a.tar")


def test_foreign_files_are_named_as_such(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("README"))
    with pytest.raises(ArtifactCorruptError, match=r"expected index\.json as the first member, found 'README'"):
        import_release(tmp_path / "a.tar", tmp_path / "new", progress=False)
    (tmp_path / "b.tar").write_bytes(b"not a tar file at all" * 100)
    with pytest.raises(ArtifactCorruptError, match="not an archive of `retro prep export`"):
        import_release(tmp_path / "b.tar", tmp_path / "new", progress=False)
    (tmp_path / "c.tar.zst").write_bytes(b"not compressed at all" * 100)
    with pytest.raises(ArtifactCorruptError, match="damaged"):
        import_release(tmp_path / "c.tar.zst", tmp_path / "new", progress=False)


def test_files_beyond_eight_gigabytes_have_a_header_of_one_block() -> None:
    size = 3 << 40
    block = header("tokenize-0123456789abcdef/tokens-00000.bin", size)
    assert len(block) == BLOCK and tarfile.TarInfo.frombuf(block, "utf-8", "strict").size == size
    reader = ArchiveReader(io.BytesIO(bytes(5)), "here")
    with pytest.raises(ArtifactCorruptError, match="ends too early"):
        reader.read(size)


_KILLED = """
import os, signal, sys
from retro.artifacts import archive, archive_import
kind, source, target = sys.argv[1:]
count = 0
def die(function):
    def run(*arguments):
        global count
        count += 1
        if count == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return run
archive._write = die(archive._write)
archive_import._extract = die(archive_import._extract)
if kind == "export":
    archive.export_release(source, target, progress=False)
else:
    archive_import.import_release(source, target, progress=False)
"""


def test_killed_exports_and_imports_leave_no_finished_target(release: Path, tmp_path: Path) -> None:
    expected = export(release, tmp_path / "good.tar")

    def killed(kind: str, source: Path, target: Path) -> None:
        done = subprocess.run([sys.executable, "-c", _KILLED, kind, str(source), str(target)], check=False)
        assert done.returncode == -signal.SIGKILL and not target.exists()
        assert any(".tmp-" in name for name in names_in(tmp_path))  # it was in the middle

    killed("export", release, tmp_path / "a.tar")
    assert export(release, tmp_path / "a.tar") == expected
    killed("import", tmp_path / "a.tar", tmp_path / "new")
    import_release(tmp_path / "a.tar", tmp_path / "new", progress=False)
    assert names_in(tmp_path) == ["a.tar", "good.tar", "made", "new"]  # what the killed ones left is gone


def test_an_import_that_is_under_way_is_not_swept_away(release: Path, tmp_path: Path) -> None:
    export(release, tmp_path / "a.tar")
    with archive_import._temporary_folder(tmp_path / "new") as live:
        import_release(tmp_path / "a.tar", tmp_path / "new", progress=False)
        assert live.is_dir()
    assert names_in(tmp_path) == ["a.tar", "made", "new"]


def test_progress_tells_rate_and_remaining_time() -> None:
    from retro.artifacts.byte_progress import ByteProgress

    bar = ByteProgress("export a.tar", 4_000_000, enabled=False)
    bar.advance(1_000_000)
    assert bar.line(2.0) == "export a.tar: 1.0 of 4.0 MB, 0.5 MB/s, 6 s left"
    assert ByteProgress("x", 10, enabled=False).line(0.0) == "x: 0.0 of 0.0 MB, 0.0 MB/s"


def test_the_commands(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["prep", "export", str(release), str(tmp_path / "a.tar.zst")]) == 0
    assert open_release(release).fingerprint in capsys.readouterr().out
    assert main(["prep", "import", str(tmp_path / "a.tar.zst"), str(tmp_path / "b")]) == 0
    assert f"release: {tmp_path / 'b' / 'release.json'}" in capsys.readouterr().out
    assert main(["prep", "import", str(tmp_path / "a.tar.zst"), str(tmp_path / "b")]) == 2
    assert "exists already" in capsys.readouterr().err
    (tmp_path / "c.tar").write_bytes(b"")
    assert main(["prep", "import", str(tmp_path / "c.tar"), str(tmp_path / "d")]) == 3
    assert "truncated" in capsys.readouterr().err
