"""Provenance of a generated text: which evidence served which tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retro.inference.evidence import neighbor_texts
from retro.inference.language_model import Generated

if TYPE_CHECKING:
    from retro.inference.retro_lm import RetroLM


def served_positions(result: Generated, chunk_length: int) -> list[tuple[int, int]]:
    """For each retrieval of `result.evidence` the tokens, start..stop of prompt and continuation together, whose
    prediction its neighbors served: from the one behind its chunk on, until the next retrieval, at most M of them."""
    total = len(result.prompt_tokens) + len(result.new_tokens)
    stops = [chunk.stop for chunk in result.evidence]
    following = [*stops[1:], total][: len(stops)]
    return [(stop, min(stop + chunk_length, after, total)) for stop, after in zip(stops, following, strict=True)]


def describe_result(lm: RetroLM, result: Generated) -> dict[str, Any]:
    """JSON-able: {"text", "stop", "num_tokens", "evidence": [{"tokens": [start, stop] of the query chunk, "query",
    "served": [start, stop] of new tokens, "served_text", "neighbors": [{"document", "chunk", "distance", "text",
    "continuation"}]}]}."""
    tokens, prompt = [*result.prompt_tokens, *result.new_tokens], len(result.prompt_tokens)
    evidence = []
    for chunk, (first, stop) in zip(
        result.evidence, served_positions(result, lm.model.config.chunk_length), strict=True
    ):
        served = [max(0, first - prompt), max(0, stop - prompt)]
        neighbors = []
        for neighbor in chunk.neighbors:
            assert lm.database is not None
            text, continuation = neighbor_texts(lm.database, lm.tokenizer, neighbor.chunk)
            neighbors.append(
                {
                    "document": neighbor.document,
                    "chunk": neighbor.chunk,
                    "distance": neighbor.distance,
                    "text": text,
                    "continuation": continuation,
                }
            )
        evidence.append(
            {
                "tokens": [chunk.start, chunk.stop],
                "query": lm.tokenizer.decode(tokens[chunk.start : chunk.stop]),
                "served": served,
                "served_text": lm.tokenizer.decode(result.new_tokens[served[0] : served[1]]),
                "neighbors": neighbors,
            }
        )
    return {
        "text": result.text,
        "stop": result.stop,
        "num_tokens": len(result.new_tokens),
        "evidence": evidence,
    }
