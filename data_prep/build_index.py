"""The stage build_index: BM25 over chunks, or an index over embeddings; and how a finished index is changed.

A finished index is never touched: extending it, or removing rows from it, makes another one that shares its files.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.bm25_index import BM25IndexStage
from data_prep.stage import Stage
from data_prep.train_index import TRAINED_KIND
from data_prep.vector_index import VectorIndexStage
from retro.artifacts.manifest import Manifest, input_path, open_manifest
from retro.config.errors import ConfigError
from retro.config.loader import from_dict
from retro.config.prep_index import IndexConfig
from retro.retrieval.searcher import INDEX_KIND

__all__ = ["BM25IndexStage", "VectorIndexStage", "build_index_stage", "extend_index_stage", "remove_rows_stage"]


def build_index_stage(
    config: IndexConfig,
    chunks: Path | None = None,
    embeddings: Path | None = None,
    trained: Path | None = None,
    base: Path | None = None,
) -> Stage:
    """The stage for a configuration: BM25 reads chunks, a vector index reads embeddings and a trained index.

    base: a finished index over the first rows of these chunks or embeddings, which is extended.
    """
    if config.kind == "bm25":
        if chunks is None:
            raise ConfigError("an index of kind bm25 needs chunks")
        return BM25IndexStage(config, chunks, base)
    if embeddings is None:
        raise ConfigError("an index of kind vectors needs embeddings; add an embed section")
    return VectorIndexStage(config, embeddings, trained, base)


def extend_index_stage(index: Path, source: Path) -> Stage:
    """The stage that adds rows to a finished index, with its options and its training.

    source: chunks (BM25) or embeddings (vectors) whose first rows are those that `index` was made from. What exists is
    hard-linked; only the rows after it are read.
    """
    return _changed(index, source, remove=False)


def remove_rows_stage(index: Path, source: Path) -> Stage:
    """The stage that removes rows from a finished index.

    source: the redacted chunks (BM25) or embeddings (vectors): the same rows, of which the removed ones are empty
    (span 0) or zero vectors. The result holds nothing of these: it equals an index made from scratch over `source`
    (with the same training), while only what has to change is computed.
    """
    return _changed(index, source, remove=True)


def _changed(index: Path, source: Path, remove: bool) -> Stage:
    manifest = open_manifest(index, INDEX_KIND)
    config = _config_of(index, manifest)
    if config.kind == "bm25":
        return BM25IndexStage(config, source, base=index, remove=remove)
    if TRAINED_KIND not in manifest.inputs:  # exact search: there is nothing to take over
        return VectorIndexStage(config, source)
    return VectorIndexStage(config, source, input_path(index, manifest, TRAINED_KIND), base=index, remove=remove)


def _config_of(index: Path, manifest: Manifest) -> IndexConfig:
    fields = {name: value for name, value in manifest.config.items() if name != "base"}
    return from_dict(IndexConfig, fields, str(index))
