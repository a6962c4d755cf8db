"""The database as inference sees it: a live retriever set up like the neighbor tables, and documents by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from retro.artifacts.manifest import input_path, open_manifest
from retro.config.errors import ConfigError
from retro.data.chunk_store import ChunkStore, open_chunk_store
from retro.data.tokenizer import Tokenizer
from retro.inference.language_model import Retrieved
from retro.retrieval.retriever import Retriever
from retro.retrieval.searcher import open_searcher

if TYPE_CHECKING:
    from retro.artifacts.release import Release
    from retro.retrieval.bm25 import BM25Searcher


def open_retriever(release: Release, device: str = "auto") -> Retriever:
    """The retriever of a release: its searcher, and candidates, reranking and overlap limit as in its neighbor tables.

    device: of a transformer embedder. Raises ConfigError if the release was prepared without a searcher.
    """
    if release.searcher is None:
        raise ConfigError(f"{release.path}: was prepared without a searcher; prepare it with one, or set retrieval=off")
    options: dict[str, Any] = {}
    table = next((split.neighbors for _, split in sorted(release.splits.items()) if split.neighbors), None)
    if table is not None:
        manifest = open_manifest(table)
        options = {name: manifest.config[name] for name in ("candidates", "max_overlap_tokens")}
        if manifest.config["rerank"] == "bm25":
            from retro.retrieval.bm25 import BM25Searcher

            reranker: BM25Searcher = BM25Searcher(input_path(table, manifest, "reranker"))
            options["reranker"] = reranker
    searcher = open_searcher(release.searcher, device)
    return Retriever(searcher, open_chunk_store(release.database_chunks), **options)


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
