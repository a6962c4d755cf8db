"""Mean loss by position in the chunk: where in a chunk its neighbors help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retro.eval.metrics.bits_per_byte import Row, part_of


def loss_by_position(rows: Sequence[Row], modes: Sequence[str], chunk_length: int) -> dict[str, Any]:
    """{"tokens": [M], "modes": {mode: [M]}}: mean negative log-likelihood (nats) of the token at each place.

    Over the chunks that retrieval serves (part_of == "served"), all of whose tokens are scored, so that log-probability
    j belongs to position j. Token losses that a model did not give are left out. None where nothing was scored.
    """
    served = [row for row in rows if part_of(row) == "served"]
    counts = [0] * chunk_length
    curves: dict[str, list[float | None]] = {}
    for row in served:
        for position in range(min(row["tokens"], chunk_length)):
            counts[position] += 1
    for mode in modes:
        sums, numbers = [0.0] * chunk_length, [0] * chunk_length
        for row in served:
            for position, value in enumerate(row["logprobs"].get(mode) or []):
                if value is not None:
                    sums[position] -= value
                    numbers[position] += 1
        curves[mode] = [total / number if number else None for total, number in zip(sums, numbers, strict=True)]
    return {"tokens": counts, "modes": curves}
