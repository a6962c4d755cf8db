"""A release out of one file: the strict reader of what `export_release` wrote (retro/artifacts/archive.py)."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from retro.artifacts.archive_format import RELEASE_NAME, ArchiveReader, Entry, Index, check_suffix
from retro.artifacts.archive_io import Decompressor, check_room, named_errors
from retro.artifacts.atomic import fsync_directory
from retro.artifacts.byte_progress import ByteProgress
from retro.artifacts.closure import iter_closure
from retro.artifacts.fingerprint import sha256_file
from retro.artifacts.manifest import MANIFEST_NAME, Manifest
from retro.artifacts.release import open_release
from retro.config.errors import ArtifactCorruptError, ArtifactError, ArtifactMissingError, ConfigError

try:
    import fcntl
except ImportError:  # no locks on this system: what killed imports left is then not removed
    fcntl = None  # type: ignore[assignment]

_COPY = 1 << 20


def import_release(archive: str | Path, folder: str | Path, progress: bool = True) -> Path:
    """Unpack an archive into the new folder `folder` and return the path of its release.json.

    Everything is written to a temporary sibling, compared with the checksums of the index and of the manifests, opened
    as a release, flushed to disk, and only then renamed. Raises ConfigError for a target that exists or has no room,
    ArtifactCorruptError for an archive that is truncated, altered or holds anything but the files of its index, and
    ArtifactMismatchError for a newer format.
    """
    archive, folder = Path(archive), Path(folder)
    compressed = check_suffix(archive)
    if not archive.is_file():
        raise ArtifactMissingError(f"{archive}: archive not found; correct the path")
    _check_target(folder)
    where = str(archive)
    with named_errors(f"{folder}: cannot be written"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_dead_folders(folder)
        with open(archive, "rb") as file:
            reader = ArchiveReader(Decompressor(file) if compressed else file, where)
            index = reader.read_index()
            check_room(folder.parent, index.total_bytes)
            with _temporary_folder(folder) as temporary:
                bar = ByteProgress(f"import {archive.name}", index.total_bytes, progress)
                for entry in index.files:
                    reader.expect(entry)
                    _extract(reader, entry, temporary / entry.name, where, bar)
                reader.expect_end()
                bar.close()
                _check_content(temporary, index, where)
                for inner in [*(path for path in temporary.iterdir() if path.is_dir()), temporary]:
                    fsync_directory(inner)
                _check_target(folder)
                os.replace(temporary, folder)
                fsync_directory(folder.parent)
    return folder / RELEASE_NAME


def _extract(reader: ArchiveReader, entry: Entry, path: Path, where: str, bar: ByteProgress) -> None:
    path.parent.mkdir(exist_ok=True)
    digest, left = hashlib.sha256(), entry.bytes
    with open(path, "xb") as file:
        while left:
            block = reader.read(min(_COPY, left))
            digest.update(block)
            file.write(block)
            left -= len(block)
            bar.advance(len(block))
        file.flush()
        os.fsync(file.fileno())
    reader.skip_padding(entry.bytes)
    if digest.hexdigest() != entry.sha256:
        raise ArtifactCorruptError(
            f"{where}: {entry.name}: expected sha256 {entry.sha256[:16]}, found {digest.hexdigest()[:16]}; the archive "
            "is damaged, copy or export it again"
        )


def _check_content(folder: Path, index: Index, where: str) -> None:
    """The release opens, all of its artifacts are there, and index and manifests agree on every file."""
    try:
        release = open_release(folder)
        closure = list(iter_closure(release))
    except ArtifactError as error:
        # The temporary place means nothing to the reader of the message.
        raise type(error)(f"{where}: {str(error).replace(str(folder), 'release')}") from None
    recorded = {RELEASE_NAME: sha256_file(folder / RELEASE_NAME)}
    for artifact, manifest in closure:
        if artifact.parent != folder.resolve():
            raise ArtifactCorruptError(f"{where}: names a folder outside the archive; it was altered, export it again")
        recorded |= _recorded_files(artifact, manifest)
    listed = {entry.name: entry.sha256 for entry in index.files}
    if recorded != listed or release.fingerprint != index.release:
        odd = sorted(name for name in {*recorded, *listed} if recorded.get(name) != listed.get(name))
        raise ArtifactCorruptError(
            f"{where}: its index and the manifests in it differ ({', '.join(odd[:3]) or 'another release'}); export it "
            "again"
        )


def _recorded_files(artifact: Path, manifest: Manifest) -> dict[str, str]:
    files = {f"{artifact.name}/{entry['name']}": str(entry["sha256"]) for entry in manifest.all_files()}
    files[f"{artifact.name}/{MANIFEST_NAME}"] = sha256_file(artifact / MANIFEST_NAME)
    return files


def _check_target(folder: Path) -> None:
    """An empty folder may be there: nothing in it can be lost."""
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise ConfigError(f"{folder}: exists already; remove it or give another folder, nothing is overwritten")


@contextlib.contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """A new sibling of `folder`, locked as long as this process lives, removed unless it was renamed."""
    temporary = folder.with_name(f".{folder.name}.tmp-import-{os.getpid()}-{secrets.token_hex(4)}")
    temporary.mkdir()
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
    finally:
        os.close(descriptor)
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_dead_folders(folder: Path) -> None:
    """Remove what killed imports into `folder` left; those of live ones are locked and stay."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.tmp-import-*"):
        if fcntl is None or path.is_symlink() or not path.is_dir():
            continue
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue
        finally:
            os.close(descriptor)
