"""Bits per byte, loss and perplexity over scored chunks.

A row is one line of a perplexity task's responses.jsonl (retro/eval/tasks/perplexity.py). A row whose score a model
did not give (`bits[mode]` is None) is left out of every sum and counted as missing; it never counts as 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]

#: Parts of the text by what retrieval can do for them; together they are everything.
PARTS = ("first_chunk", "sequence_start", "served")


def bits_per_byte(rows: Iterable[Row], mode: str) -> dict[str, Any]:
    """Totals of one mode.

    bits_per_byte: sum of bits / sum of bytes; loss: nats per token; perplexity: exp(loss) per token; bits, tokens,
    bytes, chunks: what was summed; missing: chunks without a score. Ratios are None where nothing was summed.
    """
    bits = 0.0
    tokens = num_bytes = chunks = missing = 0
    for row in rows:
        value = row["bits"].get(mode)
        if value is None:
            missing += 1
            continue
        bits += value
        tokens += row["tokens"]
        num_bytes += row["bytes"]
        chunks += 1
    loss = bits * math.log(2) / tokens if tokens else None
    return {
        "bits_per_byte": bits / num_bytes if num_bytes else None,
        "loss": loss,
        # Losses beyond 700 nats overflow a float.
        "perplexity": math.exp(loss) if loss is not None and loss < 700 else None,
        "bits": bits,
        "tokens": tokens,
        "bytes": num_bytes,
        "chunks": chunks,
        "missing": missing,
    }


def part_of(row: Row) -> str:
    """Which of PARTS a chunk is.

    "first_chunk": of its document, which has no retrieval yet; "sequence_start": a later chunk of a document that
    begins a sequence, so that the model has seen nothing before it and only its first token is served by neighbors;
    "served": all others, whose tokens are served by the neighbors of the chunk before.
    """
    if row["document_chunk"] == 0:
        return "first_chunk"
    return "sequence_start" if row["index"] == 0 else "served"
