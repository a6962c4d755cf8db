"""The database as inference sees it: a live retriever set up like the neighbor tables, and documents by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retro.artifacts.manifest import input_path, open_manifest
from retro.config.errors import ConfigError
from retro.data.chunk_store import ChunkStore, open_chunk_store
from retro.data.release_match import check_database
from retro.data.tokenizer import Tokenizer
from retro.inference.language_model import Retrieved
from retro.retrieval.retriever import Retriever
from retro.retrieval.searcher import open_searcher

if TYPE_CHECKING:
    from retro.artifacts.release import Release
    from retro.retrieval.bm25 import BM25Searcher


def open_retriever(release: Release, device: str = "auto", database: Release | None = None) -> Retriever:
    """The retriever of a release: its searcher, and candidates, reranking and overlap limit as in its neighbor tables.

    device: of a transformer embedder. database: another release whose database and searcher serve instead; its chunks
    must be of the same tokenizer and length (ArtifactMismatchError). Raises ConfigError if the one that serves was
    prepared without a searcher, or without a BM25 index where the release reranks with one.
    """
    served = release
    if database is not None:
        check_database(release, database)
        served = database
    if served.searcher is None:
        raise ConfigError(
            f"{served.path}: was prepared without a searcher; prepare it with one, or switch retrieval off"
        )
    options: dict[str, Any] = {}
    table = next((split.neighbors for _, split in sorted(release.splits.items()) if split.neighbors), None)
    if table is not None:
        manifest = open_manifest(table)
        options = {name: manifest.config[name] for name in ("candidates", "max_overlap_tokens")}
        if manifest.config["rerank"] == "bm25":
            from retro.retrieval.bm25 import BM25Searcher

            reranker: BM25Searcher = BM25Searcher(find_reranker(served))
            options["reranker"] = reranker
    searcher = open_searcher(served.searcher, device)
    return Retriever(searcher, open_chunk_store(served.database_chunks), **options)


def find_reranker(release: Release) -> Path:
    """The BM25 index of the release's database: what its tables were reranked with, or its searcher."""
    for folder in [split.neighbors for _, split in sorted(release.splits.items()) if split.neighbors is not None]:
        manifest = open_manifest(folder)
        if "reranker" in manifest.inputs:
            return input_path(folder, manifest, "reranker")
    if release.searcher is not None and open_manifest(release.searcher).config.get("kind") == "bm25":
        return release.searcher
    raise ConfigError(
        f"{release.path}: has no BM25 index to rerank with, as the neighbors of the release were; make one with "
        "`retro prep swap`"
    )


def document_id(database: ChunkStore, chunk: int) -> str:
    """Id of a database chunk's document."""
    document = int(database.documents(np.array([chunk]))[0])
    return database.tokens.document_record(document)["id"]


def describe_neighbors(database: ChunkStore, ids: np.ndarray, distances: np.ndarray) -> tuple[Retrieved, ...]:
    """Neighbors with their documents; ids int64 [K] and distances [K], -1 = none is left out."""
    return tuple(
        Retrieved(int(chunk), float(distance), document_id(database, int(chunk)))
        for chunk, distance in zip(ids, distances, strict=True)
        if chunk >= 0
    )


def neighbor_texts(database: ChunkStore, tokenizer: Tokenizer, chunk: int) -> tuple[str, str]:
    """Text of a database chunk and of what follows it in its document (empty at the document's end)."""
    tokens, mask = database.gather_neighbors(np.array([chunk]), tokenizer.pad_id)
    length = database.chunk_length
    first, rest = tokens[0, :length][mask[0, :length]], tokens[0, length:][mask[0, length:]]
    return tokenizer.decode(first.tolist()), tokenizer.decode(rest.tolist())
