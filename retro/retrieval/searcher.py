"""The searcher interface, and how an artifact of kind "index" is opened as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from retro.artifacts.manifest import input_path, open_manifest
from retro.config.errors import ArtifactMismatchError
from retro.retrieval.chunk_text import CHUNKS_KIND

INDEX_KIND = "index"


class Searcher(Protocol):
    """Nearest database chunks of query chunks. Equal distances ascend by chunk id, for any batching of the queries.

    Queries are rows of LM token ids; special tokens in them are ignored. `encode` does the work that does not depend
    on k, so that a second search with a larger k need not repeat it; `take` picks rows of what it returned.

    A searcher that may find fewer than k while the database has more (lists that are not probed) also has
    `search_wider`, see WideningSearcher.
    """

    @property
    def num_chunks(self) -> int:
        """Chunks in the database."""

    def identity(self) -> dict[str, Any]:
        """What decides the results, JSON-able."""

    def encode(self, token_rows: Sequence[np.ndarray]) -> Any:
        """Queries in the searcher's own form."""

    def take(self, encoded: Any, rows: np.ndarray) -> Any:
        """Some of the encoded queries."""

    def search_encoded(self, encoded: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `search`."""

    def search(self, token_rows: Sequence[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
        """(distances float32 [n, k] ascending, inf for none; chunk ids int64 [n, k], -1 for none)."""


@runtime_checkable
class WideningSearcher(Protocol):
    """What an approximate searcher offers for queries that it found too little for."""

    def search_wider(self, encoded: Any, k: int, times: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """As `search_encoded`, looking at `times` as many lists; and whether that is all there is to look at."""


@runtime_checkable
class Scorer(Protocol):
    """What orders given chunks: a searcher that also scores those it was not asked to find."""

    @property
    def num_chunks(self) -> int:
        """Chunks in the database."""

    def identity(self) -> dict[str, Any]:
        """What decides the scores, JSON-able."""

    def encode(self, token_rows: Sequence[np.ndarray]) -> Any:
        """Queries in the scorer's own form."""

    def take(self, encoded: Any, rows: np.ndarray) -> Any:
        """Some of the encoded queries."""

    def score(self, encoded: Any, ids: np.ndarray) -> np.ndarray:
        """Scores float32 [n, c], larger is better, of given chunks int64 [n, c]; what stands at -1 has no meaning."""


def open_searcher(folder: str | Path, device: str = "auto") -> Searcher:
    """The searcher of a finished index, with the embedder or the terms that the index was made with.

    device: of a transformer embedder. Raises ArtifactError subclasses for an index or an input that is not usable,
    ConfigError where a library that it needs is not installed.
    """
    folder = Path(folder)
    manifest = open_manifest(folder, INDEX_KIND)
    kind = manifest.config.get("kind")
    if kind == "bm25":
        from retro.retrieval.bm25 import BM25Searcher

        return BM25Searcher(folder)
    if kind == "vectors":
        from retro.retrieval.vector_searcher import open_vector_searcher

        return open_vector_searcher(folder, device)
    raise ArtifactMismatchError(f"{folder}: expected an index of kind 'bm25' or 'vectors', found {kind!r}")


def searched_chunks(folder: str | Path) -> Path:
    """Folder of the chunks that an index searches, checked through the manifests."""
    folder = Path(folder)
    manifest = open_manifest(folder, INDEX_KIND)
    if CHUNKS_KIND in manifest.inputs:
        return input_path(folder, manifest, CHUNKS_KIND)
    embeddings = input_path(folder, manifest, "embeddings")
    return input_path(embeddings, open_manifest(embeddings), CHUNKS_KIND)
