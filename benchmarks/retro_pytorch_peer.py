"""The side of RETRO-pytorch in benchmarks/retro_pytorch.py; runs in an environment of its own, imports nothing of ours.

    python retro_pytorch_peer.py FOLDER_OF_TXT MODEL THREADS NEIGHBORS

Works in the current folder (the package writes to ./.tmp) and prints one line of JSON: seconds by stage, and what the
neighbors are like. The package's algorithm is run as it is: text_folder_to_chunks_, then chunks_to_precalculated_knn_
with its defaults. The shim is
  - the encoder and its tokenizer come from the local folder MODEL in place of torch.hub.load (`bert-base-cased` from
    the network): the package keeps both in module variables, which are filled in beforehand;
  - embed_dim, which follows from the encoder: the default of chunks_to_index_and_embed is set, as the option of that
    name is not passed on to it (nor is the batch size, so that it is always the default of 16);
  - its functions are wrapped in clocks, and what it prints for every batch is thrown away.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from functools import wraps
from pathlib import Path
from typing import Any


def clocked(module: Any, name: str, seconds: dict[str, float]) -> None:
    """Add the time spent in the module's function `name` to `seconds`."""
    function = getattr(module, name)

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

    setattr(module, name, call)


def main() -> None:
    """See the module."""
    texts, model, threads, neighbors = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    # retro_pytorch.py beside this file is not the package.
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]
    start = time.perf_counter()
    import faiss
    import numpy as np
    import torch
    import transformers
    from retro_pytorch import retrieval

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    seconds: dict[str, float] = {"imports": time.perf_counter() - start}
    start = time.perf_counter()
    retrieval.TOKENIZER = transformers.AutoTokenizer.from_pretrained(model)
    retrieval.MODEL = transformers.AutoModel.from_pretrained(model)
    if torch.cuda.is_available():
        retrieval.MODEL = retrieval.MODEL.cuda()
    seconds["load_model"] = time.perf_counter() - start
    width = int(retrieval.MODEL.config.hidden_size)
    retrieval.chunks_to_index_and_embed.__kwdefaults__["embed_dim"] = width
    for name in ("text_folder_to_chunks_", "chunks_to_embeddings_", "memmap_file_to_chunks_", "index_embeddings"):
        clocked(retrieval, name, seconds)
    size = sum(path.stat().st_size for path in Path(texts).glob("**/*.txt"))
    bound = size // 8 + 100_000  # rows that its files have room for; what is not written takes no space
    begun = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        counts = retrieval.text_folder_to_chunks_(
            folder=texts,
            chunks_memmap_path="chunks.dat",
            seqs_memmap_path="seqs.dat",
            doc_ids_memmap_path="doc_ids.dat",
            max_chunks=bound,
            max_seqs=bound,
        )
        knn, _ = retrieval.chunks_to_precalculated_knn_(
            num_nearest_neighbors=neighbors,
            num_chunks=counts["chunks"],
            chunk_size=64,
            chunk_memmap_path="chunks.dat",
            doc_ids_memmap_path="doc_ids.dat",
        )
    before = seconds["imports"] + seconds["load_model"]
    seconds["total"] = before + time.perf_counter() - begun
    seconds["search"] = seconds["total"] - sum(value for name, value in seconds.items() if name != "total")
    rows = int(counts["chunks"])
    found = np.memmap(knn, dtype=np.int32, mode="r", shape=(rows, neighbors))
    vectors = np.memmap("chunks.dat.embedded", dtype=np.float32, mode="r", shape=(rows, width))
    documents = np.memmap("doc_ids.dat", dtype=np.int32, mode="r", shape=(bound,))[:rows]
    chunks = np.memmap("chunks.dat", dtype=np.int32, mode="r", shape=(bound, 65))[:rows, :64]
    json.dump(
        {
            "seconds": seconds,
            "chunks": rows,
            "padding": float((chunks == 0).mean()),
            "index_bytes": os.path.getsize(".tmp/.index/knn.index"),
            "index": type(faiss.downcast_index(faiss.read_index(".tmp/.index/knn.index"))).__name__,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            **quality(np.asarray(found), np.asarray(vectors), np.asarray(documents)),
        },
        sys.stdout,
    )


def quality(found: Any, vectors: Any, documents: Any, sample: int = 500) -> dict[str, float]:
    """Of neighbors int [n, k]: share that are missing, and share of the exact ones that are among them.

    Exact: nearest by squared L2 among the vectors [n, d] of other documents [n], for `sample` rows spread evenly; the
    zero vector is nobody's neighbor.
    """
    import numpy as np

    rows, k = np.linspace(0, len(found) - 1, min(sample, len(found))).astype(np.int64), found.shape[1]
    hits = wanted = 0
    squares = (vectors**2).sum(1)
    for row in rows:
        distances = squares - 2 * vectors @ vectors[row]
        distances[(documents == documents[row]) | (squares == 0)] = np.inf
        nearest = np.argsort(distances, kind="stable")[:k]
        nearest = nearest[np.isfinite(distances[nearest])]
        hits += len(np.intersect1d(nearest, found[row]))
        wanted += len(nearest)
    return {"missing": float((found < 0).mean()), "recall": hits / max(wanted, 1)}


if __name__ == "__main__":
    main()
