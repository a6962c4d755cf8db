"""Operations, tokens and time of a run."""

from __future__ import annotations

from dataclasses import dataclass

from retro.config.model import ModelConfig
from retro.config.train import TrainConfig
from retro.model.flops import sequence_flops
from retro.train.plan.sizes import sequence_sizes


@dataclass(frozen=True)
class Work:
    """Tokens are positions, padding included. flops_per_token: forward and backward; gpt_flops_per_token: of the GPT of
    the same decoder. step_seconds, device_hours, days: at the planned utilisation, None = the peak is not known."""

    sequences_per_step: int
    tokens_per_step: int
    steps: int
    sequences: int
    tokens: int
    flops_per_token: float
    gpt_flops_per_token: float
    flops_per_step: float
    flops: float
    step_seconds: float | None
    device_hours: float | None
    days: float | None


def plan_work(config: TrainConfig, model: ModelConfig, gpt: ModelConfig, devices: int, tflops: float | None) -> Work:
    """The work of the whole run on `devices` devices of `tflops` 10^12 operations per second each."""
    length, sequences = config.sequence_length, config.global_batch
    per_sequence = _training_flops(config, model)
    flops_per_step = per_sequence * sequences
    seconds = None
    if tflops is not None:
        seconds = flops_per_step / (devices * tflops * 1e12 * config.plan.mfu)
    hours = None if seconds is None else seconds * config.steps / 3600
    return Work(
        sequences_per_step=sequences,
        tokens_per_step=sequences * length,
        steps=config.steps,
        sequences=sequences * config.steps,
        tokens=sequences * config.steps * length,
        flops_per_token=per_sequence / length,
        gpt_flops_per_token=_training_flops(config, gpt) / length,
        flops_per_step=flops_per_step,
        flops=flops_per_step * config.steps,
        step_seconds=seconds,
        device_hours=None if hours is None else hours * devices,
        days=None if hours is None else hours / 24,
    )


def _training_flops(config: TrainConfig, model: ModelConfig) -> float:
    """Operations of a step on one sequence."""
    sizes = sequence_sizes(config, model)
    found = sequence_flops(
        model,
        config.sequence_length,
        retrieved_chunks=sizes.chunks,
        num_neighbors=sizes.num_neighbors,
        retrieved_length=sizes.retrieved,
        scored=sizes.scored,
    )
    share = config.plan.neighbor_share
    if config.freeze_backbone and model.is_retro:
        return found.retrieval_training - 3 * (1 - share) * (found.encoder + found.cross_attention)
    return 3 * (found.decoder + found.head + share * (found.encoder + found.cross_attention))
