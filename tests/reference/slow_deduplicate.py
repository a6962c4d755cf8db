"""Near-duplicate removal written for obviousness: everything in memory, one document after another, Python integers."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from data_prep.banding import choose_bands
from data_prep.minhash import Shingler, Signatures, normalise
from data_prep.signed_documents import SURVIVAL_ORDER
from retro.config.prep import DeduplicateConfig
from retro.data.document import document_key

Row = tuple[str, str, str]  # id, split, text
Found = tuple[str, str, str, float]  # dropped, kept, kind, similarity


def slow_signature(config: DeduplicateConfig, text: str) -> tuple[int, ...]:
    """The MinHash signature of one text; empty for a text without words."""
    shingles = {int(x) for x in Shingler(config.shingle_words).shingles([text])[0]}
    a, b = (row.tolist() for row in Signatures(config)._hashes)
    if not shingles:
        return ()
    return tuple(min((x * a[i] + b[i]) % 2**64 >> 32 for x in shingles) for i in range(config.permutations))


def slow_deduplicate(config: DeduplicateConfig, documents: list[Row], base: list[Row] | None = None) -> set[Found]:
    """What is dropped of `documents`, which come after all of `base`."""
    base = base or []
    in_base = {row[0] for row in base}

    def survival(row: Row) -> tuple[bool, int, int]:
        return row[0] not in in_base, SURVIVAL_ORDER.index(row[1]), document_key(row[0]) >> 3

    everything = sorted(base + documents, key=survival)
    first_of_text: dict[str, str] = {}
    kept_for: dict[str, tuple[str, str, float]] = {}
    buckets: dict[tuple, list[str]] = defaultdict(list)
    signatures: dict[str, tuple[int, ...]] = {}
    bands, rows = choose_bands(config.threshold, config.permutations) if config.near else (0, 0)
    copies = []
    for name, _, text in everything:
        first = first_of_text.setdefault(normalise(text), name)
        if first != name and name not in in_base:
            copies.append((name, first))
            continue
        signature = slow_signature(config, text) if config.near else ()
        if not signature:
            continue
        signatures[name] = signature
        candidates = set()
        for band in range(bands):
            bucket = buckets[band, signature[band * rows : (band + 1) * rows]]
            candidates |= set(bucket[: config.bucket_candidates])
            bucket.append(name)
        if name in in_base:
            continue
        best: tuple[str, str, float] | None = None
        for other in sorted(candidates, key=list(signatures).index):
            similarity = float(np.mean([x == y for x, y in zip(signature, signatures[other], strict=True)]))
            if other not in kept_for and similarity >= config.threshold and (best is None or similarity > best[2]):
                best = (other, "near", similarity)
        if best is not None:
            kept_for[name] = best
    for name, first in copies:
        kept_for[name] = kept_for.get(first, (first, "exact", 1.0))
    return {(name, kept, kind, round(similarity, 6)) for name, (kept, kind, similarity) in kept_for.items()}
