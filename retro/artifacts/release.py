"""A release: the artifacts that belong together, by path and fingerprint. What training and evaluation are given."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from retro.artifacts.atomic import remove_dead_temporaries, write_json_atomic
from retro.artifacts.fingerprint import canonical_json
from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ArtifactMissingError

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Split:
    """One split as queries: its tokens, its chunks, and the neighbors of its chunks (None: prepared without)."""

    tokens: Path
    chunks: Path
    neighbors: Path | None


@dataclasses.dataclass(frozen=True)
class Release:
    """Absolute folders of finished artifacts, each checked to be the one recorded (docs/formats.md).

    database_chunks: the chunks that may be retrieved; searcher: an index over them; splits: name -> Split;
    questions: name -> folder of question artifacts made from the same documents; fingerprint: identity of the whole.
    """

    path: Path
    fingerprint: str
    tokenizer: Path
    documents: Path
    database_tokens: Path
    database_chunks: Path
    searcher: Path | None
    splits: dict[str, Split]
    questions: dict[str, Path]

    def split(self, name: str) -> Split:
        """The split `name`. Raises ArtifactMismatchError naming the splits that there are."""
        if name not in self.splits:
            raise ArtifactMismatchError(f"{self.path}: no split {name!r}; it has {', '.join(sorted(self.splits))}")
        return self.splits[name]


def write_release(
    path: Path,
    *,
    tokenizer: Path,
    documents: Path,
    database_tokens: Path,
    database_chunks: Path,
    searcher: Path | None,
    splits: dict[str, Split],
    questions: dict[str, Path] | None = None,
) -> str:
    """Write release.json, atomically; returns its fingerprint. Every folder must hold a finished artifact."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    def entry(folder: Path | None) -> dict[str, str] | None:
        if folder is None:
            return None
        manifest = open_manifest(folder)
        relative = os.path.relpath(Path(folder).resolve(), path.parent.resolve())
        return {"kind": manifest.kind, "fingerprint": manifest.fingerprint, "path": relative}

    content: dict[str, Any] = {
        "format": FORMAT,
        "tokenizer": entry(tokenizer),
        "documents": entry(documents),
        "database": {
            "tokens": entry(database_tokens),
            "chunks": entry(database_chunks),
            "searcher": entry(searcher),
        },
        "splits": {
            name: {"tokens": entry(s.tokens), "chunks": entry(s.chunks), "neighbors": entry(s.neighbors)}
            for name, s in sorted(splits.items())
        },
        "questions": {name: entry(folder) for name, folder in sorted((questions or {}).items())},
    }
    content["fingerprint"] = release_fingerprint(content)
    if not _holds(path, content):  # a finished release may lie where nothing can be written
        write_json_atomic(path, content)
    remove_dead_temporaries(path.parent, path.name)  # of runs that were killed in the line above
    return str(content["fingerprint"])


def _holds(path: Path, content: dict[str, Any]) -> bool:
    """Whether the file has exactly this content."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")) == content)
    except (OSError, ValueError):
        return False


def release_fingerprint(content: dict[str, Any]) -> str:
    """16 hexadecimal digits over the fingerprints of all members; independent of where they lie."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            if "fingerprint" in value and "path" in value:
                return [value["kind"], value["fingerprint"]]
            return {k: strip(v) for k, v in value.items() if k != "fingerprint"}
        return value

    return hashlib.sha256(canonical_json(strip(content)).encode()).hexdigest()[:16]


def release_file(path: str | Path) -> Path:
    """The release file itself, where the folder that holds it may be named instead. Raises ArtifactMissingError."""
    path = Path(path)
    if path.is_dir():
        path = path / "release.json"
    if not path.is_file():
        raise ArtifactMissingError(f"{path}: release not found; make it with `retro prep run CONFIG.yaml`")
    return path


def read_release(path: str | Path) -> dict[str, Any]:
    """The content of a release file, its format and fingerprint checked, its members not looked at."""
    path = release_file(path)
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] > FORMAT:
            raise ArtifactMismatchError(f"{path}: expected release format {FORMAT}, found {content['format']}")
        expected = str(content["fingerprint"])
        if release_fingerprint(content) != expected:
            raise ArtifactCorruptError(f"{path}: members do not match the fingerprint {expected}; make it again")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from None
    return content


def open_release(path: str | Path) -> Release:
    """Open a release file (or the folder that holds release.json) and check every member's manifest and fingerprint.

    Raises ArtifactMissingError, ArtifactCorruptError (not readable, or edited) or ArtifactMismatchError (a member was
    replaced by another).
    """
    content = read_release(path)
    path = release_file(path)
    try:
        expected = str(content["fingerprint"])
        folder = path.resolve().parent
        database = content["database"]
        return Release(
            path=path.resolve(),
            fingerprint=expected,
            tokenizer=_member(path, folder, content["tokenizer"], "tokenizer"),
            documents=_member(path, folder, content["documents"], "documents"),
            database_tokens=_member(path, folder, database["tokens"], "database tokens"),
            database_chunks=_member(path, folder, database["chunks"], "database chunks"),
            searcher=_optional(path, folder, database["searcher"], "searcher"),
            splits={
                name: Split(
                    tokens=_member(path, folder, s["tokens"], f"{name} tokens"),
                    chunks=_member(path, folder, s["chunks"], f"{name} chunks"),
                    neighbors=_optional(path, folder, s["neighbors"], f"{name} neighbors"),
                )
                for name, s in content["splits"].items()
            },
            questions={
                name: _member(path, folder, entry, f"questions {name}") for name, entry in content["questions"].items()
            },
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ArtifactCorruptError:
    return ArtifactCorruptError(
        f"{path}: not a readable release ({type(error).__name__}: {error}); make it again with `retro prep run`"
    )


def _optional(path: Path, folder: Path, entry: dict[str, str] | None, what: str) -> Path | None:
    return None if entry is None else _member(path, folder, entry, what)


def _member(path: Path, folder: Path, entry: dict[str, str], what: str) -> Path:
    member = Path(os.path.normpath(folder / entry["path"]))
    found = open_manifest(member, entry["kind"]).fingerprint
    if found != entry["fingerprint"]:
        raise ArtifactMismatchError(
            f"{path}: {what}: expected {entry['fingerprint']}, found {found} at {member}; run `retro prep run` again"
        )
    return member
