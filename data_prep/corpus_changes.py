"""Which files a corpus had when it was ingested, and what a user is told when it has other ones now."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_prep.readers.hashing import CorpusFile
from data_prep.stage import Stage
from retro.artifacts.manifest import MANIFEST_NAME, Manifest, read_manifest
from retro.config.errors import ArtifactCorruptError, RetroError

CORPUS_FILES_NAME = "corpus.jsonl.zst"
_SHOWN = 3


def write_corpus_files(path: Path, files: Iterable[CorpusFile]) -> None:
    """Write one line {"file", "bytes", "sha256"} per file, in order."""
    import zstandard

    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    with open(path, "wb") as file, compressor.stream_writer(file) as stream:
        for entry in files:
            record = {"file": entry.relative, "bytes": entry.bytes, "sha256": entry.sha256}
            stream.write(json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n")


def read_corpus_files(path: Path) -> Iterator[tuple[str, str]]:
    """(relative path, SHA-256) of every file. Raises ArtifactCorruptError for anything else than such a list."""
    import zstandard

    try:
        with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
            for line in io.BufferedReader(reader, 1 << 20):  # type: ignore[arg-type]
                record = json.loads(line)
                yield str(record["file"]), str(record["sha256"])
    except (zstandard.ZstdError, OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ArtifactCorruptError(f"{path}: not a list of files ({error}); restore it") from None


def corpus_change(stage: Stage, files: list[CorpusFile], root: Path) -> str | None:
    """One line about how the corpus differs from the one that was last ingested below `root` with the same options.

    stage: the ingest to be carried out; files: of the corpus as it is. None if there is nothing to say: the corpus is
    finished, or it is the first one with these options.
    """
    if (root / stage.folder_name() / MANIFEST_NAME).is_file():
        return None
    earlier = _latest_other_corpus(stage, root)
    if earlier is None:
        return None
    folder, manifest = earlier
    begin = f"ingest: the corpus is not the one of {folder.name}, which stays as it is: "
    if not (folder / CORPUS_FILES_NAME).is_file() or not files:
        return begin + _identities(manifest.config["corpus"], stage.config["corpus"])
    now = {file.relative: file.sha256 for file in files}
    removed: list[str] = []
    changed: list[str] = []
    for name, sha256 in read_corpus_files(folder / CORPUS_FILES_NAME):
        found = now.pop(name, None)
        if found is None:
            removed.append(name)
        elif found != sha256:
            changed.append(name)
    parts = [
        f"{len(names):,} files {what} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for names, what in ((sorted(now), "added"), (removed, "removed"), (changed, "changed"))
        if names
    ]
    return begin + (", ".join(parts) or _identities(manifest.config["corpus"], stage.config["corpus"]))


def _latest_other_corpus(stage: Stage, root: Path) -> tuple[Path, Manifest] | None:
    """The ingest that was finished last of those that differ from `stage` in nothing but the corpus."""
    paths = [path for path in root.glob(f"{stage.name}-*/{MANIFEST_NAME}") if path.is_file()]
    for path in sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path), reverse=True):
        try:
            manifest = read_manifest(path.parent, stage.kind)
        except RetroError:
            continue  # whatever is wrong with it is not this run's business
        same = {**manifest.config, "corpus": None} == {**stage.config, "corpus": None}
        if same and manifest.config.get("corpus") != stage.config["corpus"]:
            return path.parent, manifest
    return None


def _identities(before: Any, now: Any) -> str:
    """What differs in the identities of two corpora without lists of files: the commit of a data set, say."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return "its identity is another"
    names = sorted(name for name in {**before, **now} if before.get(name) != now.get(name) and name != "sha256")
    return (
        ", ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in names) or "its content differs"
    )
