"""What `factory: auto` chooses, from the number of vectors, their dimension and the memory budget alone.

Measured on about 200,000 vectors of a transformer embedder (benchmarks/records/index_recall.json); for billions the
rule ends in the class of index of InstructRetro (Wang et al. 2023, tables 6 to 8). The machine at hand never takes
part: the same configuration is the same index everywhere.
"""

from __future__ import annotations

import dataclasses
import math

# Up to here exact search is as fast as a good index is worth: a query of 384 dimensions takes a millisecond and less.
EXACT_VECTORS = 200_000
DEFAULT_BUDGET_GB = 8.0
# A point in a list carries its number (8 bytes); the graph over the lists 2 x 32 links of 4 bytes each.
_ID_BYTES, _LINK_BYTES = 8, 2 * 32 * 4
# Reading an artifact's vectors by memory map costs no memory; the index itself has to stay within the budget.
_GB = 1e9


@dataclasses.dataclass(frozen=True)
class Choice:
    """factory: "exact" or a faiss factory string; reason: one line for people; bytes: estimated size of the index."""

    factory: str
    reason: str
    bytes: int


def list_count(vectors: int) -> int:
    """Inverted lists for so many vectors: the power of two nearest to 4 sqrt(n), at most 2^22 as in the papers."""
    return int(2 ** min(22, max(4, round(math.log2(4 * math.sqrt(max(vectors, 1)))))))


def choose_factory(vectors: int, dimension: int, budget_gb: float | None = None) -> Choice:
    """The index for `vectors` vectors of `dimension` numbers each, of at most `budget_gb` gigabytes (None = 8).

    In order of accuracy: exact; one byte per number; one bit per number (RaBitQ, Gao and Long 2024), whose candidates
    the stored embeddings decide; product codes of 64 or fewer bytes behind a rotation (OPQ, Ge et al. 2013).
    """
    budget = (DEFAULT_BUDGET_GB if budget_gb is None else budget_gb) * _GB
    if vectors <= EXACT_VECTORS:
        reason = f"{vectors:,} vectors are at most {EXACT_VECTORS:,}: exact search is fast enough"
        return Choice("exact", reason, 0)
    options = compressed_options(vectors, dimension)
    number = next((i for i, option in enumerate(options) if option.bytes <= budget), len(options) - 1)
    factory, what, total = options[number].factory, options[number].reason, options[number].bytes
    fits = "within" if total <= budget else "the smallest there is, but more than"
    reason = (
        f"{vectors:,} vectors of {dimension}: {what}, {_size(total)} in memory, {fits} the budget of {_size(budget)}"
    )
    return Choice(factory, reason, total)


def compressed_options(vectors: int, dimension: int) -> list[Choice]:
    """What there is beyond exact search, from the most accurate to the smallest; the reason says how it compresses."""
    lists = list_count(vectors)
    coarse = lists * (4 * dimension + _LINK_BYTES)
    code = min(64, max(8, dimension // 8))
    options = [
        (f"IVF{lists}_HNSW32,SQ8", dimension, "a byte per number"),
        (f"IVF{lists}_HNSW32,RaBitQ", dimension // 8 + 8, "a bit per number, candidates decided by the embeddings"),
        (_product_factory(dimension, lists, code), code, f"product codes of {code} bytes"),
    ]
    return [Choice(factory, what, vectors * (size + _ID_BYTES) + coarse) for factory, size, what in options]


def _product_factory(dimension: int, lists: int, code: int) -> str:
    # Twice as many numbers as bytes of code, as in OPQ64_128,...,PQ64; a rotation does not add dimensions.
    reduced = min(2 * code, dimension // code * code)
    if reduced < code:  # fewer numbers than bytes: a byte each
        code = reduced = dimension
    return f"OPQ{code}_{reduced},IVF{lists}_HNSW32,PQ{code}"


def _size(count: float) -> str:
    return f"{count / _GB:.3g} GB"
