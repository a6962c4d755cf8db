"""A searcher over vectors: an embedder and an index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from retro.artifacts.manifest import input_path, open_manifest
from retro.config.errors import ArtifactCorruptError
from retro.config.loader import from_dict
from retro.config.prep_index import VectorIndexConfig
from retro.retrieval.chunk_text import CHUNKS_KIND, decode_rows, open_chunk_tokenizer
from retro.retrieval.embedder import Embedder, check_recipe, open_embedder
from retro.retrieval.exact import ExactIndex
from retro.retrieval.vectors import VectorStore, open_vectors

if TYPE_CHECKING:
    from retro.data.tokenizer import Tokenizer

FAISS_FILE = "index-{}.faiss"
ROWS_FILE = "rows-{}.npy"


class VectorIndex(Protocol):
    """Nearest vectors: ExactIndex, FaissIndex."""

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(distances float32 [n, k] ascending, ids int64 [n, k], -1 = none) of queries float32 [n, d]."""


class VectorSearcher:
    """Embeds queries with the database's embedder and searches the index. Raises ArtifactMismatchError otherwise."""

    def __init__(
        self, embedder: Embedder, index: VectorIndex, vectors: VectorStore, tokenizer: Tokenizer, fingerprint: str
    ) -> None:
        if vectors.recipe is not None:
            check_recipe(vectors.recipe, embedder.identity(), "query embedder")
        self.embedder, self._index, self._vectors = embedder, index, vectors
        self._tokenizer, self._fingerprint = tokenizer, fingerprint

    @property
    def num_chunks(self) -> int:
        """Chunks in the database."""
        return len(self._vectors)

    def identity(self) -> dict[str, Any]:
        """Index and recipe."""
        return {"kind": "vectors", "index": self._fingerprint, "embedder": self.embedder.identity()}

    def encode(self, token_rows: Sequence[np.ndarray]) -> np.ndarray:
        """Vectors of the text of each row: float32 [n, d]."""
        return self.embedder.embed(decode_rows(self._tokenizer, token_rows))

    def take(self, encoded: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Some of the vectors."""
        return encoded[rows]

    def search(self, token_rows: Sequence[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
        """(distances float32 [n, k], ids int64 [n, k]): see retro.retrieval.searcher.Searcher."""
        return self.search_encoded(self.encode(token_rows), k)

    def search_encoded(self, encoded: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `search`, of vectors made by the same recipe."""
        return self._index.search(encoded, k)


def open_vector_searcher(folder: str | Path, device: str = "auto") -> VectorSearcher:
    """The searcher of a finished index over vectors."""
    folder = Path(folder)
    manifest = open_manifest(folder, "index")
    embeddings = input_path(folder, manifest, "embeddings")
    vectors = open_vectors(embeddings)
    embeddings_manifest = open_manifest(embeddings)
    embedder = open_embedder(input_path(embeddings, embeddings_manifest, "embedder"), device)
    tokenizer = open_chunk_tokenizer(input_path(embeddings, embeddings_manifest, CHUNKS_KIND))
    config = from_dict(VectorIndexConfig, manifest.config["vectors"], str(folder))
    index = open_vector_index(folder, vectors, embedder.metric, config, manifest.shards[0]["name"])
    return VectorSearcher(embedder, index, vectors, tokenizer, manifest.fingerprint)


def open_vector_index(
    folder: Path, vectors: VectorStore, metric: Any, config: VectorIndexConfig, shard: str
) -> VectorIndex:
    """The index files of `folder` over the vectors that they were built from."""
    if config.factory == "exact":
        return ExactIndex(vectors, metric)
    from retro.retrieval.faiss_index import FaissIndex, read_faiss

    path = folder / ROWS_FILE.format(shard)
    try:
        rows = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise ArtifactCorruptError(f"{path}: not a readable array ({error}); make the index again") from None
    return FaissIndex(read_faiss(folder / FAISS_FILE.format(shard)), rows, vectors, metric, config)
