"""Finished artifacts of embeddings, written directly."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from retro.artifacts.manifest import Manifest, describe_file, write_manifest


def write_embeddings(folder: Path, vectors: np.ndarray, shard: int = 5000) -> Path:
    """An embeddings artifact of the vectors [n, d]; its fingerprint is that of their bytes."""
    folder.mkdir(parents=True)
    shards = []
    for number, start in enumerate(range(0, len(vectors), shard)):
        name = f"{number:05d}"
        path = folder / f"vectors-{name}.npy"
        np.save(path, vectors[start : start + shard])
        rows = len(vectors[start : start + shard])
        shards.append({"name": name, "rows": rows, "files": [describe_file(path)], "stats": {}})
    recipe = {"metric": "l2", "dimension": vectors.shape[1]}
    fingerprint = hashlib.sha256(vectors.tobytes()).hexdigest()[:16]
    write_manifest(folder, Manifest("embeddings", "embed", 1, fingerprint, {"recipe": recipe}, {}, shards, [], {}))
    return folder


def clustered_vectors(n: int, d: int = 16) -> np.ndarray:
    """float16 [n, d] around 50 centres; 5 and 9000 are zero vectors."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(50, d)) * 2
    vectors = centres[generator.integers(0, 50, n)] + generator.normal(size=(n, d))
    vectors[[5, 9000]] = 0
    return vectors.astype(np.float16)
