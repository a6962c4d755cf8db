"""A release as one file: `export_release` writes the archive, `import_release` (archive_import.py) reads it.

Format: retro/artifacts/archive_format.py. Files are streamed and hashed on the way in both directions; nothing is kept
in memory but the index. A killed export or import leaves nothing under the final name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

from retro.artifacts.archive_format import (
    BLOCK,
    INDEX_NAME,
    RELEASE_NAME,
    Entry,
    Index,
    archive_size,
    check_name,
    check_suffix,
    header,
    padding,
)
from retro.artifacts.archive_io import check_room, compressor, named_errors
from retro.artifacts.atomic import atomic_path, remove_dead_temporaries
from retro.artifacts.byte_progress import ByteProgress
from retro.artifacts.closure import iter_closure
from retro.artifacts.manifest import MANIFEST_NAME
from retro.artifacts.release import open_release, read_release
from retro.config.errors import ArtifactCorruptError, ArtifactError, ConfigError

_COPY = 1 << 20


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where an entry's bytes come from: a file, or `data` that is made here (release.json, manifests)."""

    entry: Entry
    path: Path | None = None
    data: bytes = b""


def export_release(release: str | Path, archive: str | Path, progress: bool = True) -> Index:
    """Write all that the release needs into `archive` (*.tar or *.tar.zst), whole or not at all; returns the index.

    Included are the artifacts that are opened when it is searched, trained on or evaluated (closure.py), wherever they
    lie; the paths in release.json and in the manifests are rewritten for one folder. Raises ConfigError
    for a target that exists or has no room, ArtifactError subclasses for a release that is damaged: every file is
    compared with its recorded checksum on the way.
    """
    archive = Path(archive)
    compressed = check_suffix(archive)
    if archive.exists() or archive.is_symlink():
        raise ConfigError(f"{archive}: exists already; remove it or give another name, nothing is overwritten")
    if not archive.parent.is_dir():
        raise ConfigError(f"{archive.parent}: no such folder to write the archive to; make it first")
    sources = _sources(Path(release))
    index = Index(open_release(release).fingerprint, tuple(source.entry for source in sources))
    with named_errors(f"{archive}: cannot be written"):
        remove_dead_temporaries(archive.parent, archive.name)
        if not compressed:
            check_room(archive.parent, archive_size(index))
        with atomic_path(archive) as temporary, open(temporary, "wb") as file:
            bar = ByteProgress(f"export {archive.name}", index.total_bytes, progress)
            with compressor(file) if compressed else contextlib.nullcontext(file) as out:
                data = index.dump()
                out.write(header(INDEX_NAME, len(data)) + data + bytes(padding(len(data))))
                for source in sources:
                    _write(out, source, bar)
                out.write(bytes(2 * BLOCK))
            file.flush()
            bar.close()
    return index


def _sources(release: Path) -> list[_Source]:
    """Everything that goes into the archive, in order."""
    opened = open_release(release)
    members = {f"{m.stage}-{m.fingerprint}": (f, m) for f, m in iter_closure(opened)}
    names = {manifest.fingerprint: name for name, (_, manifest) in members.items()}
    content = _moved(read_release(opened.path), names)
    sources = [_made(RELEASE_NAME, content)]
    for name, (folder, manifest) in sorted(members.items()):
        inputs = {
            key: {**entry, "path": f"../{names.get(entry['fingerprint'], Path(entry['path']).name)}"}
            for key, entry in manifest.inputs.items()
        }
        moved = dataclasses.replace(manifest, inputs=inputs)
        sources.append(_made(f"{name}/{MANIFEST_NAME}", dataclasses.asdict(moved)))
        for file in sorted(manifest.all_files(), key=lambda f: str(f["name"])):
            entry = Entry(f"{name}/{file['name']}", int(file["bytes"]), str(file["sha256"]))
            sources.append(_Source(entry, folder / file["name"]))
    for source in sources:
        try:
            check_name(source.entry.name)
        except ValueError as error:
            raise ArtifactError(f"{release}: cannot be exported: {error}; rename it and prepare again") from None
    return sources


def _made(name: str, content: dict[str, Any]) -> _Source:
    data = (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
    return _Source(Entry(name, len(data), hashlib.sha256(data).hexdigest()), data=data)


def _moved(value: Any, names: dict[str, str]) -> Any:
    """release.json with the members beside it."""
    if not isinstance(value, dict):
        return value
    out = {key: _moved(item, names) for key, item in value.items()}
    if "path" in out and "fingerprint" in out:
        out["path"] = names[out["fingerprint"]]
    return out


def _write(out: Any, source: _Source, bar: ByteProgress) -> None:
    """Header, content and padding of one file, compared with its recorded size and checksum."""
    entry = source.entry
    out.write(header(entry.name, entry.bytes))
    if source.path is None:
        out.write(source.data)
        bar.advance(entry.bytes)
    else:
        digest, left = hashlib.sha256(), entry.bytes
        with _open_source(source.path) as file:
            while left and (block := file.read(min(_COPY, left))):
                digest.update(block)
                out.write(block)
                left -= len(block)
                bar.advance(len(block))
        if left or digest.hexdigest() != entry.sha256:
            raise ArtifactCorruptError(
                f"{source.path}: expected {entry.bytes} bytes with sha256 {entry.sha256[:16]}, found others; the "
                "artifact is damaged, restore it or make it again"
            )
    out.write(bytes(padding(entry.bytes)))


def _open_source(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise ArtifactCorruptError(f"{path}: cannot be read ({error.strerror}); restore it") from None
