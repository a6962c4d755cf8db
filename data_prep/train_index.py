"""The stage train_index: what kind of index the embeddings get, and its training on a seeded uniform sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.stage import Shard, ShardResult, Stage
from retro.artifacts.manifest import open_manifest
from retro.config.errors import ConfigError
from retro.config.prep_index import IndexConfig
from retro.retrieval.devices import choose_engine
from retro.retrieval.index_choice import choose_factory
from retro.retrieval.vectors import EMBEDDINGS_KIND, open_vectors

TRAINED_KIND = "trained_index"
TRAINED_FILE = "trained-{}.faiss"
# Fields of the configuration that training reads; the others belong to build_index, and change nothing here.
_FIELDS = ("factory", "memory_budget_gb", "train_sample", "seed")


class TrainIndexStage(Stage):
    """Embeddings -> trained index: `trained-00000.faiss`, a faiss index without vectors; no file for exact search.

    `factory: auto` is decided here: figures `factory` and `reason` of the manifest are what is built.
    """

    name = "train_index"
    kind = TRAINED_KIND

    def __init__(self, config: IndexConfig, embeddings: Path) -> None:
        if config.kind != "vectors":
            raise ConfigError(f"train_index: an index of kind {config.kind} is not trained")
        fields = {name: getattr(config.vectors, name) for name in _FIELDS}
        super().__init__({"kind": "vectors", "vectors": fields}, {EMBEDDINGS_KIND: embeddings})
        self._vectors = config.vectors

    def plan(self) -> list[Shard]:
        """One shard: training is one piece of work, which faiss spreads over threads."""
        return [Shard("00000", {})]

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Choose, train and write."""
        embeddings = self.inputs[EMBEDDINGS_KIND]
        store = open_vectors(embeddings)
        factory, reason = self._vectors.factory, "as configured"
        if factory == "auto":
            dimension = int(open_manifest(embeddings).config["recipe"].get("dimension", store.dimension))
            choice = choose_factory(len(store), dimension, self._vectors.memory_budget_gb)
            factory, reason = choice.factory, choice.reason
        stats: dict[str, Any] = {"factory": factory, "reason": reason, "training_vectors": 0, "notice": ""}
        if factory != "exact":
            from retro.retrieval.faiss_index import write_faiss
            from retro.retrieval.faiss_training import train_index

            engine = choose_engine(self._vectors.device, exact=False)
            trained = train_index(store, vector_metric(embeddings), factory, self._vectors, engine == "faiss-gpu")
            write_faiss(trained.index, out / TRAINED_FILE.format(shard.name))
            stats.update(training_vectors=trained.vectors, notice=trained.notice)
        return ShardResult(stats["training_vectors"], stats)

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Figures only."""
        return dict(records[0]["stats"])

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """For people."""
        chosen = f"{stats['factory']} ({stats['reason']})"
        trained = f", trained on {rows:,} vectors" if rows else ", nothing to train"
        return chosen + trained + (f"; note: {stats['notice']}" if stats["notice"] else "")


def vector_metric(embeddings: Path) -> Any:
    """Metric of the vectors of an embeddings artifact."""
    return open_manifest(embeddings).config["recipe"].get("metric", "l2")
