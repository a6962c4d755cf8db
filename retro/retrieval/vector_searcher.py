"""A searcher over vectors: an embedder and an index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from retro.artifacts.manifest import Manifest, input_path, open_manifest
from retro.config.errors import ArtifactCorruptError, ConfigError
from retro.config.loader import from_dict
from retro.config.prep_index import VectorIndexConfig
from retro.retrieval.chunk_text import CHUNKS_KIND, decode_rows, open_chunk_tokenizer
from retro.retrieval.devices import choose_engine
from retro.retrieval.embedder import Embedder, Metric, check_recipe, open_embedder
from retro.retrieval.exact import ExactIndex, pair_distances
from retro.retrieval.faiss_index import FaissIndex, Part, SearchSettings, read_faiss
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

    def search_wider(self, encoded: np.ndarray, k: int, times: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """As `search_encoded`, over `times` as many lists; and whether there is no more (see WideningSearcher)."""
        if isinstance(self._index, FaissIndex):
            return self._index.search_wider(encoded, k, times)
        return *self._index.search(encoded, k), True

    def score(self, encoded: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Negated exact distances float32 [n, c] of given chunks int64 [n, c]; -inf where the id is -1, and for a zero
        vector, which is never retrieved."""
        out = np.full(ids.shape, -np.inf, dtype=np.float32)
        rows, columns = np.nonzero((ids >= 0) & (encoded != 0).any(axis=1)[:, None])
        chunks = ids[rows, columns]
        distances = pair_distances(encoded, rows, chunks, self._vectors, self.embedder.metric)
        empty = (self.stored(chunks) == 0).all(axis=1)
        out[rows, columns] = np.where(empty, -np.inf, -distances)
        return out

    def stored(self, ids: np.ndarray) -> np.ndarray:
        """Vectors of database chunks int64 [n], as `encode` gives them but for the rounding of their storage."""
        return self._vectors.gather(ids)


def open_vector_searcher(folder: str | Path, device: str = "auto") -> VectorSearcher:
    """The searcher of a finished index over vectors. device: of the embedder and the index (speed only)."""
    folder = Path(folder)
    manifest = open_manifest(folder, "index")
    embeddings = input_path(folder, manifest, "embeddings")
    vectors = open_vectors(embeddings)
    embeddings_manifest = open_manifest(embeddings)
    embedder = open_embedder(input_path(embeddings, embeddings_manifest, "embedder"), device)
    tokenizer = open_chunk_tokenizer(input_path(embeddings, embeddings_manifest, CHUNKS_KIND))
    # `cuda` asks for the embedder there; the index goes there where faiss or torch can
    index = open_vector_index(folder, manifest, vectors, embedder.metric, "cpu" if device == "cpu" else "auto")
    return VectorSearcher(embedder, index, vectors, tokenizer, manifest.fingerprint)


def open_vector_index(
    folder: Path, manifest: Manifest, vectors: VectorStore, metric: Metric, device: str = "auto"
) -> VectorIndex:
    """The index of a finished artifact over the vectors that it was built from, with the settings that it records.

    Raises ArtifactCorruptError for files that are not readable, ConfigError for `device: cuda` where there is none.
    """
    config = from_dict(VectorIndexConfig, manifest.config["vectors"], str(folder))
    factory = manifest.stats.get("factory", config.factory)
    engine = choose_engine(device, exact=factory == "exact")
    if factory == "exact":
        return open_exact(vectors, metric, engine, device)
    recorded = manifest.stats.get("search")
    settings = SearchSettings(config.probes, config.ef_search) if recorded is None else SearchSettings(**recorded)
    names = [part["name"] for part in manifest.stats.get("parts", [{"name": manifest.shards[0]["name"]}])]
    if engine == "faiss-gpu":
        try:
            return open_parts(folder, names, vectors, metric, settings, factory, on_gpu=True)
        except ConfigError:  # faiss has no GPU form of every index
            if device != "auto":
                raise
    return open_parts(folder, names, vectors, metric, settings, factory)


def open_exact(vectors: VectorStore, metric: Metric, engine: str, device: str) -> VectorIndex:
    """Exact search over vectors, on the GPU where the engine is torch."""
    if engine == "torch":
        from retro.retrieval.torch_index import TorchIndex

        return TorchIndex(vectors, metric, device)
    return ExactIndex(vectors, metric)


def open_parts(
    folder: Path,
    names: Sequence[str],
    vectors: VectorStore,
    metric: Metric,
    settings: SearchSettings,
    factory: str = "",
    on_gpu: bool = False,
) -> FaissIndex:
    """The parts of an index in `folder`, by memory map, as one index."""
    parts = []
    for name in names:
        path = folder / ROWS_FILE.format(name)
        rows = None
        if path.exists():
            try:
                rows = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
            except (OSError, ValueError) as error:
                raise ArtifactCorruptError(f"{path}: not a readable array ({error}); make the index again") from None
        parts.append(Part(read_faiss(folder / FAISS_FILE.format(name)), rows))
    return FaissIndex(parts, vectors, metric, settings, factory, on_gpu=on_gpu)
