"""Configurations of finished artifacts, out of their manifests: what a new artifact of the same kind is made with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from retro.artifacts.manifest import input_path, open_manifest
from retro.config.errors import ConfigError
from retro.config.evaluation import QuestionSequencesConfig
from retro.config.loader import from_dict
from retro.config.prep_index import Bm25Config, IndexConfig
from retro.config.prep_neighbors import NeighborsConfig

T = TypeVar("T")
# The index that the pipeline reranks with.
RERANK_INDEX = IndexConfig(kind="bm25", bm25=Bm25Config())


def stored_config(cls: type[T], folder: Path, changes: dict[str, Any] | None = None) -> T:
    """The configuration `cls` that the artifact in `folder` was made with, with some fields changed.

    Fields that its manifest does not have (of speed only, or younger than it) get their defaults; what `cls` no longer
    has is left out. Raises ConfigError for a change that the class refuses.
    """
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {key: value for key, value in open_manifest(folder).config.items() if key in fields}
    return from_dict(cls, {**values, **(changes or {})}, str(folder))


def neighbors_config(table: Path | None, changes: dict[str, Any] | None = None) -> NeighborsConfig:
    """Of a neighbor table; without one the defaults."""
    return (
        from_dict(NeighborsConfig, changes or {}, "neighbors")
        if table is None
        else stored_config(NeighborsConfig, table, changes)
    )


def sequences_config(folder: Path, changes: dict[str, Any] | None = None) -> QuestionSequencesConfig:
    """Of a question_sequences artifact."""
    return stored_config(QuestionSequencesConfig, folder, changes)


def index_config(folder: Path) -> IndexConfig:
    """Of an index. Raises ConfigError for one that is of no known kind."""
    manifest = open_manifest(folder)
    kind = manifest.config.get("kind")
    if kind not in ("bm25", "vectors"):
        raise ConfigError(f"{folder}: expected an index of kind bm25 or vectors, found {kind!r}")
    return from_dict(IndexConfig, {"kind": kind, kind: manifest.config[kind]}, str(folder))


def find_reranker(tables: list[Path]) -> Path | None:
    """The BM25 index that some of these neighbor tables or question sequences were reranked with."""
    for table in tables:
        manifest = open_manifest(table)
        if "reranker" in manifest.inputs:
            return input_path(table, manifest, "reranker")
    return None
