"""questions.json: which artifact holds the prepared questions of a folder, by path and fingerprint.

What release.json is to a preparation, this is to `retro qa prepare`: small, written last, and all that a person or a
configuration has to name.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from retro.artifacts.atomic import write_json_atomic
from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError

POINTER = "questions.json"
FORMAT = 1


def write_pointer(path: Path, passages: Path) -> dict[str, Any]:
    """Write questions.json for a finished artifact of kind "qa_passages", atomically; returns its content.

    A file that says the same already is left as it is.
    """
    manifest = open_manifest(passages, "qa_passages")
    stats = manifest.stats
    content = {
        "format": FORMAT,
        "task": {"name": stats["task"]["name"], "version": stats["task"]["version"]},
        "passages": {
            "kind": manifest.kind,
            "fingerprint": manifest.fingerprint,
            "path": os.path.relpath(Path(passages).resolve(), path.parent.resolve()),
        },
        "release": stats["release"],
        "retrieval": stats["retrieval"],
        "splits": stats["splits"],
    }
    try:
        same = json.loads(path.read_text(encoding="utf-8")) == content
    except (OSError, ValueError, RecursionError):
        same = False
    if not same:
        write_json_atomic(path, content)
    return content


def read_pointer(path: Path) -> Path:
    """Folder of the artifact that a questions.json names, checked to be that one.

    Raises ArtifactCorruptError, ArtifactMismatchError or another ArtifactError of the artifact itself.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        newer = content["format"] > FORMAT
        entry = {name: str(content["passages"][name]) for name in ("kind", "fingerprint", "path")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactCorruptError(
            f"{path}: not a readable {POINTER} ({type(error).__name__}: {error}); run `retro qa prepare` again"
        ) from None
    if newer:
        raise ArtifactMismatchError(f"{path}: expected format {FORMAT}, found {content['format']}; update this package")
    folder = Path(os.path.normpath(path.resolve().parent / entry["path"]))
    found = open_manifest(folder, entry["kind"]).fingerprint
    if found != entry["fingerprint"]:
        raise ArtifactMismatchError(
            f"{path}: expected passages {entry['fingerprint']}, found {found} at {folder}; run `retro qa prepare` again"
        )
    return folder
