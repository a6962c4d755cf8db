"""Whether the parts of two releases go together: tokenizers that encode alike, databases of equal chunks."""

from __future__ import annotations

import json
from pathlib import Path

from retro.artifacts.manifest import input_path, open_manifest
from retro.artifacts.release import Release
from retro.config.errors import ArtifactMismatchError, ConfigError
from retro.data.token_store import TokenStore
from retro.data.tokenizer import CONFIG_NAME, HUGGINGFACE_NAME, SENTENCEPIECE_NAME, TOKENIZER_KIND


def check_same_tokenizer(expected: str | Path, found: str | Path, where: str) -> None:
    """Raise ArtifactMismatchError, naming both, unless the two artifacts hold the same tokenizer.

    Equal content counts, not only equal fingerprints: a tokenizer that was trained for one release and taken over as a
    file by another is the same one.
    """
    manifests = [open_manifest(folder, TOKENIZER_KIND) for folder in (expected, found)]
    if manifests[0].fingerprint == manifests[1].fingerprint:
        return
    parts = []
    for folder, manifest in zip((expected, found), manifests, strict=True):
        checksums = {f["name"]: f["sha256"] for f in manifest.all_files()}
        model = checksums.get(SENTENCEPIECE_NAME), checksums.get(HUGGINGFACE_NAME)
        settings = json.loads((Path(folder) / CONFIG_NAME).read_text(encoding="utf-8"))
        parts.append((model, {key: settings.get(key) for key in ("vocab_size", "bos_id", "eos_id", "pad_id")}))
    if parts[0] != parts[1] or parts[0][0] == (None, None):
        raise ArtifactMismatchError(
            f"{where}: expected tokens of the tokenizer {manifests[0].fingerprint} ({expected}), found "
            f"{manifests[1].fingerprint} ({found}); tokenize both with one tokenizer (tokenizer.kind and "
            "tokenizer.existing.path)"
        )


def check_same_tokens(expected: TokenStore, found: TokenStore) -> None:
    """Raise ArtifactMismatchError unless both stores hold tokens of the same tokenizer, as `check_same_tokenizer`."""
    if found.tokenizer_fingerprint == expected.tokenizer_fingerprint:
        return
    folders = [input_path(store.folder, open_manifest(store.folder), "tokenizer") for store in (expected, found)]
    check_same_tokenizer(folders[0], folders[1], str(found.folder))


def check_database(ours: Release, theirs: Release) -> None:
    """Raise ArtifactMismatchError or ConfigError unless the database of `theirs` can serve the queries of `ours`."""
    check_same_tokenizer(ours.tokenizer, theirs.tokenizer, str(theirs.path))
    expected = open_manifest(ours.database_chunks).config["chunk_length"]
    found = open_manifest(theirs.database_chunks).config["chunk_length"]
    if found != expected:
        raise ArtifactMismatchError(
            f"{theirs.path}: expected a database of chunks of {expected} tokens, as {ours.path} has, found {found}; "
            f"prepare it with chunk.chunk_length={expected}"
        )
    if theirs.searcher is None:
        raise ConfigError(f"{theirs.path}: was prepared without a searcher; prepare it with an index section")
