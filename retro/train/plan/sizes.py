"""What of a sequence a plan counts on."""

from __future__ import annotations

from dataclasses import dataclass

from retro.config.model import ModelConfig
from retro.config.qa import parse_arm
from retro.config.train import TrainConfig


@dataclass(frozen=True)
class SequenceSizes:
    """Of one training sequence, at most. chunks: that retrieve, each num_neighbors K of `retrieved` tokens R; scored:
    positions."""

    chunks: int
    num_neighbors: int
    retrieved: int
    scored: int


def sequence_sizes(config: TrainConfig, model: ModelConfig) -> SequenceSizes:
    """Text: every chunk but the last retrieves, whose neighbors would serve no scored position, and all positions but
    the last are scored. Questions (dataset qa): the prompt retrieves once, and the answer is scored."""
    length, chunk = config.sequence_length, model.chunk_length
    if config.qa is None:
        chunks = length // chunk - 1 if model.is_retro else 0
        return SequenceSizes(chunks, config.num_neighbors, 2 * chunk, max(length - 1, 1))
    arm, layout = parse_arm(config.qa.arm), config.qa.layout
    passages = layout.passages - arm.in_prompt
    chunks = int(model.is_retro and arm.in_encoder and passages > 0)
    return SequenceSizes(chunks, max(passages, 1), layout.passage_tokens, min(layout.answer_tokens, chunk))
