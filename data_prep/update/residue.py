"""Where the text of removed documents still lies: artifacts beside the old release, and what was made of them."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data_prep.update.removal import find_in_store
from retro.artifacts.closure import iter_closure
from retro.artifacts.manifest import MANIFEST_NAME, Manifest, open_manifest, read_manifest, verify_files
from retro.artifacts.release import Release, open_release, read_release
from retro.config.errors import ArtifactCorruptError, ArtifactError, ConfigError
from retro.data.document import document_key, read_documents
from retro.data.questions import read_questions
from retro.data.token_store import open_token_store

# What holds no text and nothing that could be read back from it: positions, numbers of chunks, and what was fitted on
# the whole corpus.
_HARMLESS = frozenset({"chunks", "neighbors", "tokenizer", "embedder", "trained_index", "checkpoint"})
# Inputs that do not tell what such an artifact holds: it holds what its other inputs hold.
_TAKEN_FROM = frozenset({"base", "added", "redacted_from"})
_REMADE = frozenset({"chunks", "embeddings", "index"})
_DEPTH = 3


@dataclasses.dataclass(frozen=True)
class Residue:
    """folders: finished artifacts that hold removed text or what was computed from it; unfinished: folders of stages
    that have not ended and damaged artifacts, which nobody has looked into; roots: where was looked."""

    folders: tuple[Path, ...]
    unfinished: tuple[Path, ...]
    roots: tuple[Path, ...]


def find_residue(old: Release, ids: frozenset[str]) -> Residue:
    """Look through the folders that hold the artifacts of `old` and everything that it was made from."""
    roots = tuple(sorted({folder.parent for folder, _ in _lineage(old)}))
    artifacts: dict[Path, Manifest] = {}
    unfinished = []
    for root in roots:
        for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
            if (folder / MANIFEST_NAME).is_file():
                try:
                    artifacts[folder] = open_manifest(folder)
                except ArtifactError:  # damaged: as little known as of one that is not finished
                    unfinished.append(folder)
            elif (folder / "shards").is_dir():
                unfinished.append(folder)
    judged: dict[Path, bool] = {}
    folders = [f for f in sorted(artifacts) if _holds(f, artifacts, ids, judged) and artifacts[f].kind not in _HARMLESS]
    return Residue(tuple(folders), tuple(unfinished), roots)


def check_clean(new: Release, ids: frozenset[str]) -> None:
    """Compare all checksums of the new release; raise ArtifactCorruptError if any of it holds a removed document."""
    artifacts = dict(iter_closure(new))
    judged: dict[Path, bool] = {}
    for folder, manifest in artifacts.items():
        problems = verify_files(folder, manifest)
        if problems:
            raise ArtifactCorruptError(f"{problems[0]}; nothing was purged, make the new release again")
        if manifest.kind not in _HARMLESS and _holds(folder, artifacts, ids, judged):
            raise ArtifactCorruptError(
                f"{folder}: still holds a removed document; nothing was purged, please report this"
            )


def purge(residue: Residue, old: Release, new: Release) -> list[Path]:
    """Delete exactly the folders of the residue, and the release.json of the old release, which they made up.

    Raises ConfigError, naming it, if another release below the same folders still uses one of them; then nothing is
    deleted. Returns what was.
    """
    doomed = set(residue.folders)
    for path in _releases(residue.roots):
        if path in (old.path, new.path):
            continue
        used = sorted(doomed & _used_by(path))
        if used:
            raise ConfigError(
                f"{path}: still uses {used[0]}, so nothing was purged; remove the documents from that release too, or "
                "delete its release.json, and run the command again"
            )
    clash = sorted(doomed & {folder for folder, _ in iter_closure(new)})
    if clash:
        raise ConfigError(f"{new.path}: uses {clash[0]}, so nothing was purged; please report this")
    old.path.unlink(missing_ok=True)
    for folder in residue.folders:
        (folder / MANIFEST_NAME).unlink(missing_ok=True)  # from now on nobody takes it for finished
        shutil.rmtree(folder)
    return [old.path, *residue.folders]


def _lineage(release: Release) -> Iterator[tuple[Path, Manifest]]:
    """The release's artifacts and all that they were made from, as far as it is still there."""
    pending = [folder for folder, _ in iter_closure(release)]
    seen: set[Path] = set()
    while pending:
        folder = pending.pop()
        if folder in seen or not (folder / MANIFEST_NAME).is_file():
            continue
        seen.add(folder)
        manifest = read_manifest(folder)
        yield folder, manifest
        pending += [_input(folder, entry["path"]) for entry in manifest.inputs.values()]


def _holds(folder: Path, artifacts: dict[Path, Manifest], ids: frozenset[str], judged: dict[Path, bool]) -> bool:
    """Whether an artifact holds a removed document: looked up where ids are in it, else by what it was made from."""
    if folder not in judged:
        judged[folder] = False  # of a circle, which no honest manifest makes
        manifest = artifacts.get(folder)
        if manifest is None:
            if not (folder / MANIFEST_NAME).is_file():
                return False
            try:
                manifest = open_manifest(folder)
            except ArtifactError:
                return False
        if manifest.kind == "tokens":
            judged[folder] = bool(len(find_in_store(open_token_store(folder), set(ids))[0]))
        elif manifest.kind == "documents":
            judged[folder] = _has_document(folder, manifest, ids)
        elif manifest.kind in ("questions", "question_sequences"):
            files = [folder / str(f["name"]) for f in manifest.all_files() if str(f["name"]).endswith(".jsonl")]
            judged[folder] = any(question.document in ids for file in files for question in read_questions(file))
        elif manifest.kind in ("tokenizer", "embedder", "trained_index"):
            judged[folder] = False
        else:
            left_out = _TAKEN_FROM if manifest.kind in _REMADE else frozenset()
            sources = [entry["path"] for name, entry in manifest.inputs.items() if name not in left_out]
            judged[folder] = any(_holds(_input(folder, path), artifacts, ids, judged) for path in sources)
    return judged[folder]


def _has_document(folder: Path, manifest: Manifest, ids: frozenset[str]) -> bool:
    files = {str(entry["name"]) for entry in manifest.all_files()}
    keyed = all(f"keys-{record['name']}.npy" in files for record in manifest.shards)
    if keyed and not any(str(entry["name"]).startswith("documents-") for entry in manifest.files):
        keys = np.array(sorted(map(document_key, ids)), dtype=np.uint64)
        paths = [folder / f"keys-{record['name']}.npy" for record in manifest.shards]
        return any(bool(np.isin(np.load(path, allow_pickle=False), keys).any()) for path in paths)
    names = sorted(name for name in files if name.startswith("documents-"))
    return any(document.id in ids for name in names for document in read_documents(folder / name))


def _input(folder: Path, path: str) -> Path:
    return Path(os.path.normpath(folder / path))


def _releases(roots: Iterable[Path]) -> Iterator[Path]:
    """Every release.json in these folders and a few levels below them, artifacts left out."""
    for root in roots:
        for place, folders, files in os.walk(root):
            depth = len(Path(place).relative_to(root).parts)
            inside = [f for f in folders if not f.startswith(".") and not (Path(place) / f / MANIFEST_NAME).is_file()]
            folders[:] = inside if depth < _DEPTH else []
            if "release.json" in files:
                yield (Path(place) / "release.json").resolve()


def _used_by(path: Path) -> set[Path]:
    """Folders that a release uses; of one that does not open any more those that its file names."""
    try:
        return {folder for folder, _ in iter_closure(open_release(path))}
    except ArtifactError:
        pass
    try:
        content = read_release(path)
    except ArtifactError:
        return set()
    found: set[Path] = set()
    pending = [content]
    while pending:
        value = pending.pop()
        if "path" in value and "fingerprint" in value:
            found.add(_input(path.parent, str(value["path"])))
        else:
            pending += [item for item in value.values() if isinstance(item, dict)]
    return found
