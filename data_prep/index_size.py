"""Bytes of a vector index, computed from its faiss factory string: what one vector takes, and what is there once.

Sizes follow faiss' own layouts (faiss 1.14): codes of each storage, 8-byte ids in inverted lists, 4-byte links of HNSW
graphs, float32 centroids and codebooks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from retro.config.errors import ConfigError

_ID_BYTES = 8
# faiss computes a table of PQ distances per list and keeps it if it is not larger (IndexIVFPQ).
_TABLE_LIMIT = 1 << 31
_KNOWN = (
    "OPQm, OPQm_d, PCAd, PCARd, RRd, L2norm; IVFn, IVFn_HNSWm; HNSWm, NSGm; Flat, SQ4, SQ6, SQ8, SQfp16, SQbf16, "
    "PQm, PQmxb, PQmxbfs, RaBitQ, LSH; RFlat, Refine(...)"
)


@dataclass(frozen=True)
class IndexSize:
    """Of one factory string at one dimension, all in bytes.

    code: per vector, refinement included; ids, links: per vector (inverted lists; graph); fixed: trained numbers,
    whatever the number of vectors (rotation, centroids with the graph over them, codebooks); table: made when the index
    is opened, in memory only; lists: inverted lists, None = none; width: numbers of a vector behind the rotation;
    plain_lists: lists that shards fill on their own (no refinement, no fast scan).
    """

    factory: str
    dimension: int
    code: float
    ids: int
    links: float
    fixed: int
    table: int
    lists: int | None
    width: int
    plain_lists: bool

    @property
    def per_vector(self) -> float:
        """Bytes of one vector."""
        return self.code + self.ids + self.links

    def on_disk(self, vectors: int | float) -> int:
        """Bytes of the index file with so many vectors."""
        return round(self.per_vector * vectors + self.fixed)

    def in_memory(self, vectors: int | float) -> int:
        """Bytes when it is searched from memory."""
        return self.on_disk(vectors) + self.table


def index_size(factory: str, dimension: int) -> IndexSize:
    """Sizes of the index that faiss makes of `factory` for vectors of `dimension` numbers. "exact" has no index.

    Raises ConfigError for a string with a part that is not known.
    """
    if factory == "exact":
        return IndexSize(factory, dimension, 0, 0, 0, 0, 0, None, dimension, False)
    parts = _split(factory)
    width, fixed, links = dimension, 0, 0.0
    lists: int | None = None
    code: float | None = None
    codebook_width = 0
    refine = 0.0
    for part in parts:
        part, _, inner = part.partition("_") if re.match(r"(IVF|HNSW|NSG)\d+_", part) else (part, "", "")
        if found := re.fullmatch(r"(OPQ\d+_|OPQ|PCARW?|PCAW|PCA|RR)(\d+)", part):
            kind, number = found.groups()
            target = width if kind == "OPQ" else int(number)
            # A PCA keeps the matrix of all directions, their weights and the mean beside the one that it applies.
            fixed += 4 * width * target + (4 * width * (width + 2) if kind.startswith("PCA") else 0)
            width = target
        elif part == "L2norm":
            pass
        elif found := re.fullmatch(r"IVF(\d+)", part):
            lists = int(found.group(1))
            fixed += 4 * width * lists + (round(lists * _graph_bytes(inner, factory)) if inner else 0)
        elif found := re.fullmatch(r"(?:HNSW|NSG)(\d+)", part):
            links = _links(int(found.group(1)), part.startswith("HNSW"))
            if inner or part == parts[-1]:
                code, more = _storage(inner or "Flat", width, factory)
                fixed += more
        elif found := re.fullmatch(r"(?:RFlat|Refine\((.+)\))", part):
            refine = 4 * dimension if not found.group(1) else _storage(found.group(1), dimension, factory)[0]
        else:
            code, more = _storage(part, width, factory)
            fixed += more
            codebook_width = _codebook(part)
    if code is None:
        raise _unknown(factory, parts[-1])
    table = 0
    if lists is not None and codebook_width and 4 * lists * codebook_width <= _TABLE_LIMIT:
        table = 4 * lists * codebook_width
    plain = lists is not None and not refine and not re.search(r"fsr?(,|$)", factory)
    ids = 0 if lists is None else _ID_BYTES
    return IndexSize(factory, dimension, code + refine, ids, links, fixed, table, lists, width, plain)


def _split(factory: str) -> list[str]:
    """Parts between the commas outside of brackets."""
    parts, depth, current = [], 0, ""
    for character in factory.replace(" ", ""):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += character
    return [*parts, current]


def _storage(part: str, width: int, factory: str) -> tuple[float, int]:
    """(bytes per vector, bytes of trained numbers) of a storage for vectors of `width` numbers."""
    if part == "Flat":
        return 4.0 * width, 0
    if found := re.fullmatch(r"SQ(4|6|8|fp16|bf16)", part):
        bits = {"4": 4, "6": 6, "8": 8, "fp16": 16, "bf16": 16}[found.group(1)]
        return float(-(-width * bits // 8)), 8 * width if bits <= 8 else 0
    if found := re.fullmatch(r"PQ(\d+)(?:x(\d+))?(fs|fsr)?(np)?", part):
        count, bits = int(found.group(1)), int(found.group(2) or 8)
        if width % count:
            raise ConfigError(f"factory {factory!r}: {part}: {count} codes do not divide {width} dimensions")
        return float(-(-count * bits // 8)), 4 * width * 2**bits
    if re.fullmatch(r"RaBitQ(fs)?", part):
        # A bit per number, and two factors that make distances of them; the centroid of all.
        return float(-(-width // 8) + 8), 4 * width
    if re.fullmatch(r"LSH[rt]*", part):
        return float(-(-width // 8)), 4 * width
    raise _unknown(factory, part)


def _codebook(part: str) -> int:
    """Entries of a table of distances to all centroids of a product quantizer, 0 for other storages."""
    found = re.fullmatch(r"PQ(\d+)(?:x(\d+))?(?:np)?", part)
    return int(found.group(1)) * 2 ** int(found.group(2) or 8) if found else 0


def _graph_bytes(inner: str, factory: str) -> float:
    """Bytes per centroid of the graph that finds the lists."""
    found = re.fullmatch(r"(HNSW|NSG)(\d+)", inner)
    if not found:
        raise _unknown(factory, inner)
    return _links(int(found.group(2)), found.group(1) == "HNSW")


def _links(links: int, hierarchical: bool) -> float:
    """Bytes per vector of a graph: 2M links below and M in each of the 1/(M-1) levels above, level and offset."""
    if not hierarchical:
        return 4.0 * links
    return 4.0 * (2 * links + links / (links - 1)) + 4 + 8 if links > 1 else 4.0 * 3 + 12


def _unknown(factory: str, part: str) -> ConfigError:
    return ConfigError(f"factory {factory!r}: the size of {part!r} is not known; expected parts: exact, or {_KNOWN}")
