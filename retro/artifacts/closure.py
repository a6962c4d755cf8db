"""The artifacts that a release needs to be opened, searched, trained on and evaluated: its members and their inputs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from retro.artifacts.manifest import Manifest, open_manifest
from retro.artifacts.release import Release
from retro.config.errors import ArtifactMismatchError

# Inputs that nothing opens again once the artifact is finished: (kind of the artifact, name of the input), "*" = any.
# All others are followed by who reads the artifact. In what `retro prep add` and `remove` make, "base", "added" and
# "redacted_from" are what was extended or redacted: its content that still counts is in the artifact itself.
NEVER_OPENED = frozenset(
    {
        ("documents", "*"),
        ("tokenizer", "*"),
        ("embedder", "*"),
        ("questions", "*"),
        ("trained_index", "*"),
        ("tokens", "documents"),
        ("neighbors", "query_embeddings"),
        ("*", "base"),
        ("*", "added"),
        ("*", "redacted_from"),
    }
)


def release_members(release: Release) -> list[Path]:
    """Folders that release.json names, each once, in a fixed order."""
    folders = [release.tokenizer, release.documents, release.database_tokens, release.database_chunks]
    folders += [release.searcher] if release.searcher is not None else []
    for _, split in sorted(release.splits.items()):
        folders += [split.tokens, split.chunks]
        folders += [split.neighbors] if split.neighbors is not None else []
    folders += [folder for _, folder in sorted(release.questions.items())]
    return list(dict.fromkeys(folders))


def opened_inputs(manifest: Manifest) -> list[str]:
    """Names of the inputs that readers of the artifact open."""
    skipped = {name for kind, name in NEVER_OPENED if kind in ("*", manifest.kind)}
    return [] if "*" in skipped else [name for name in sorted(manifest.inputs) if name not in skipped]


def iter_closure(release: Release) -> Iterator[tuple[Path, Manifest]]:
    """(folder, manifest) of every artifact that is needed, each once, inputs behind what was made from them.

    Raises ArtifactError subclasses for one that is missing, damaged, or not the one that was recorded.
    """
    pending = [(folder, "") for folder in release_members(release)]
    seen: set[str] = set()
    while pending:
        folder, expected = pending.pop(0)
        manifest = open_manifest(folder)
        if expected and manifest.fingerprint != expected:
            raise ArtifactMismatchError(
                f"{folder}: expected {manifest.kind} {expected}, found {manifest.fingerprint}; prepare it again"
            )
        if manifest.fingerprint in seen:
            continue
        seen.add(manifest.fingerprint)
        yield folder, manifest
        for name in opened_inputs(manifest):
            entry = manifest.inputs[name]
            pending.append((Path(os.path.normpath(folder / entry["path"])), entry["fingerprint"]))
