"""What differs between two faiss index files: kind, size, trained numbers, lists or codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from retro.retrieval.native import load_faiss


def describe_index_difference(one: Path, other: Path) -> str:
    """One line for people, of files that are not equal byte for byte. Both are read; nothing is raised for one that
    cannot be."""
    faiss = load_faiss()
    indexes = []
    for path in (one, other):
        try:
            indexes.append(faiss.read_index(str(path), faiss.IO_FLAG_READ_ONLY))
        except RuntimeError:
            return f"{path} is not a readable faiss index"
    a, b = indexes
    found = []
    for name in ("d", "ntotal", "metric_type", "is_trained"):
        if getattr(a, name) != getattr(b, name):
            found.append(f"{name} {getattr(a, name)} / {getattr(b, name)}")
    lists_a, lists_b = _inverted_lists(faiss, a), _inverted_lists(faiss, b)
    if (lists_a is None) != (lists_b is None):
        found.append(f"kind {type(a).__name__} / {type(b).__name__}")
    elif lists_a is not None:
        found += _list_differences(faiss, lists_a, lists_b)
    if not found:
        return "the same sizes and lists; trained numbers (centroids, codebooks, rotation), codes or links differ"
    return "faiss index: " + ", ".join(found)


def _list_differences(faiss: Any, a: Any, b: Any) -> list[str]:
    if a.nlist != b.nlist:
        return [f"{a.nlist} lists / {b.nlist}"]
    found = []
    try:
        first, second = (x.quantizer.reconstruct_n(0, x.nlist) for x in (a, b))
        if not np.array_equal(first, second):
            found.append(f"centroids differ by up to {float(np.abs(first - second).max()):.2g}")
    except RuntimeError:  # a coarse quantizer that cannot reconstruct
        found.append("centroids not comparable")
    sizes = np.array([[x.invlists.list_size(i) for i in range(a.nlist)] for x in (a, b)])
    moved = int(np.abs(sizes[0] - sizes[1]).sum())
    if moved:
        found.append(f"sizes of {int((sizes[0] != sizes[1]).sum())} of {a.nlist} lists differ")
    return found


def _inverted_lists(faiss: Any, index: Any) -> Any:
    try:
        return faiss.try_extract_index_ivf(index)
    except RuntimeError:
        return None
