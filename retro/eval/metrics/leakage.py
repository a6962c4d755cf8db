"""The leakage curve bpb(alpha): bits per byte over the chunks that share little with their neighbors.

Source: Borgeaud et al. 2022, section 2.6: r(C) = longest common contiguous token run of chunk C with
any of its 10 nearest neighbors / length of C; bpb(alpha) is taken over the chunks with r(C) <= alpha.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retro.eval.metrics.bits_per_byte import Row, bits_per_byte

ALPHAS = tuple(i / 8 for i in range(9))


def leakage_curve(rows: Sequence[Row], modes: Sequence[str], alphas: Sequence[float] = ALPHAS) -> dict[str, Any] | None:
    """{"alphas", "chunks", "modes": {mode: {"bits_per_byte", "share_of_bytes"}}}; None if no row has an overlap.

    Lists run over the alphas. `chunks` counts rows with r(C) <= alpha; the share is of the bytes of all rows whose
    overlap is known and that the mode scored. bits_per_byte is None where no chunk is left.
    """
    known = [row for row in rows if row["overlap"] is not None]
    if not known:
        return None
    kept = [[row for row in known if row["overlap"] <= alpha] for alpha in alphas]
    curves: dict[str, dict[str, list[float | None]]] = {}
    for mode in modes:
        total = bits_per_byte(known, mode)["bytes"]
        scores = [bits_per_byte(part, mode) for part in kept]
        curves[mode] = {
            "bits_per_byte": [score["bits_per_byte"] for score in scores],
            "share_of_bytes": [score["bytes"] / total if total else None for score in scores],
        }
    return {"alphas": list(alphas), "chunks": [len(part) for part in kept], "modes": curves}
