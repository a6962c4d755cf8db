"""What the stages that search a database check of the indexes that they are given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactMismatchError, ConfigError
from retro.retrieval.chunk_text import CHUNKS_KIND
from retro.retrieval.searcher import INDEX_KIND, searched_chunks

if TYPE_CHECKING:
    from retro.retrieval.bm25 import BM25Searcher


def search_inputs(rerank: str, database: Path, searcher: Path, reranker: Path | None) -> dict[str, Path]:
    """The inputs of a stage that searches: {"database", "searcher"} and, where it reranks, "reranker".

    Raises ConfigError where `rerank` ("none", "bm25") and the reranker do not fit, and ArtifactMismatchError for an
    index of another database, or one of another kind than BM25 to rerank with.
    """
    if (rerank == "bm25") != (reranker is not None):
        raise ConfigError(
            "rerank: bm25 needs a BM25 index of the database, and rerank: none takes none; "
            f"found rerank: {rerank} and reranker {reranker}"
        )
    inputs = {"database": database, "searcher": searcher}
    if reranker is not None:
        inputs["reranker"] = reranker
    expected = open_manifest(database, CHUNKS_KIND).fingerprint
    for name in ("searcher", "reranker"):
        if name not in inputs:
            continue
        found = open_manifest(searched_chunks(inputs[name])).fingerprint
        if found != expected:
            raise ArtifactMismatchError(
                f"{inputs[name]}: expected an index of the database {expected}, found one of {found}; "
                "build the index of this database"
            )
    if reranker is not None and open_manifest(reranker, INDEX_KIND).config["kind"] != "bm25":
        raise ArtifactMismatchError(f"{reranker}: expected a BM25 index to rerank with")
    return inputs


def open_reranker(inputs: dict[str, Path]) -> BM25Searcher | None:
    """The index that candidates are ordered by, None where they are not."""
    if "reranker" not in inputs:
        return None
    from retro.retrieval.bm25 import BM25Searcher

    return BM25Searcher(inputs["reranker"])
