"""What a configuration that adds documents takes from the release that it adds to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from retro.artifacts.manifest import Manifest, input_path, open_manifest
from retro.artifacts.release import Release, open_release
from retro.config.errors import ConfigError
from retro.config.prep import DeduplicateConfig
from retro.config.prep_embed import EmbedConfig
from retro.config.prep_neighbors import NeighborsConfig
from retro.config.prep_tokens import ChunkConfig

# Sections of which the base decides everything; nothing in them is read.
_BASES_OWN = ("tokenizer", "questions", "question_sequences")
# Sections whose result-changing fields must be the base's.
_FIXED = ("chunk", "embed", "index", "deduplicate", "token_order_seed", "query_splits")


def inherit(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of PrepConfig for a file that names a base: those of the base, with the given ones in their place.

    given: what the file and the command line say, without defaults. Fields that decide what the base's chunks, vectors
    and postings are may be repeated, not changed; those of `neighbors` may be changed, since all neighbors are found
    again. Raises ConfigError for a field of the base's own and for another value.
    """
    base = open_release(str(given["base"]))
    for name in _BASES_OWN:
        if given.get(name) is not None:
            raise ConfigError(f"{name}: is that of the base {base.path}; remove the section")
    stored = base_fields(base)
    for name in _FIXED:
        if name in given:
            if (given[name] is None) != (stored.get(name) is None):
                here, there = ("no", "one") if given[name] is None else ("a", "none")
                raise ConfigError(f"{name}: found {here} section, but the base {base.path} has {there}; remove it")
            for where, expected, found in _differences(name, stored.get(name), given[name]):
                raise ConfigError(
                    f"{where}: expected {expected!r}, as the base {base.path} has, found {found!r}; remove it, it is "
                    "taken over"
                )
    _check_database(base, stored, given)
    return _merge(stored, given)


def base_fields(base: Release) -> dict[str, Any]:
    """Fields of PrepConfig as the release was made, from the manifests; fields of speed only are not in them."""
    chunks, tokens = open_manifest(base.database_chunks), open_manifest(base.database_tokens)
    fields: dict[str, Any] = {
        "chunk": _fields_of(ChunkConfig, chunks.config),
        "database_splits": list(tokens.config["splits"]),
        "query_splits": sorted(base.splits),
        "deduplicate": None,
        "embed": None,
    }
    if "seed" in tokens.config:
        fields["token_order_seed"] = tokens.config["seed"]
    documents = open_manifest(base.documents)
    if "near" in documents.config:
        fields["deduplicate"] = _fields_of(DeduplicateConfig, documents.config)
    if base.searcher is not None:
        index = open_manifest(base.searcher)
        kind = index.config["kind"]
        fields["index"] = {"kind": kind, kind: index.config[kind]}
        if "embeddings" in index.inputs:
            fields["embed"] = _embed_fields(input_path(base.searcher, index, "embeddings"))
    table = next((split.neighbors for _, split in sorted(base.splits.items()) if split.neighbors is not None), None)
    if table is not None:
        fields["neighbors"] = _fields_of(NeighborsConfig, open_manifest(table).config)
    return fields


def _embed_fields(folder: Path) -> dict[str, Any]:
    manifest = open_manifest(folder)
    embedder: Manifest = open_manifest(input_path(folder, manifest, "embedder"))
    kind = embedder.config["kind"]
    return {**_fields_of(EmbedConfig, manifest.config), "kind": kind, kind: embedder.config[kind]}


def _check_database(base: Release, stored: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Splits may join the database if the base has no document of them: its own would be missing."""
    if "database_splits" not in given:
        return
    there = open_manifest(base.documents).stats.get("splits", {})
    found, expected = set(given["database_splits"]), set(stored["database_splits"])
    wrong = sorted(expected - found) + sorted(name for name in found - expected if there.get(name))
    if wrong:
        raise ConfigError(
            f"database_splits: expected {sorted(expected)}, as the base {base.path} has, and splits of which it has no "
            f"document, found {sorted(found)} ({wrong[0]} is in only one of them)"
        )


def _fields_of(cls: type, config: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(cls)}
    return {key: value for key, value in config.items() if key in names}


def _differences(where: str, expected: Any, found: Any) -> Iterator[tuple[str, Any, Any]]:
    """(field, base's value, given value) where both say something and it is not the same."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for key, value in found.items():
            if key in expected:
                yield from _differences(f"{where}.{key}", expected[key], value)
    elif isinstance(expected, (list, tuple)) and isinstance(found, (list, tuple)):
        if sorted(map(str, expected)) != sorted(map(str, found)):
            yield where, expected, found
    elif expected != found:
        yield where, expected, found


def _merge(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in given.items():
        old = out.get(key)
        out[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out
