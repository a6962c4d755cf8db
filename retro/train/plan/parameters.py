"""Numbers of parameters by part, and by what is gathered, sharded and trained together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from retro.config.model import EncoderConfig, GateConfig, ModelConfig
from retro.model.retro import RetroModel, is_retrieval_parameter

#: Parts of a model, in the order of tables.
PARTS = ("embedding", "decoder", "cross_attention", "encoder", "head")


@dataclass(frozen=True)
class Parameter:
    """part: of PARTS; unit: what FSDP gathers at once, a layer of decoder or encoder, "" = the rest; local: scalars of
    one of `tensor` processes; is_matrix: of a linear layer within the stacks (autocast makes a bfloat16 copy of it,
    Muon orthogonalises it); is_sharded: FSDP shards it, which leaves vectors whole; is_trained: has a gradient."""

    part: str
    unit: str
    size: int
    local: int
    is_matrix: bool
    is_sharded: bool
    is_trained: bool


def list_parameters(config: ModelConfig, *, tensor: int = 1, frozen_backbone: bool = False) -> list[Parameter]:
    """All parameters of a model, tied ones once; made without their memory. Raises ConfigError for a configuration that
    no model can be built of."""
    with torch.device("meta"):
        model = RetroModel(config)
    return [
        Parameter(
            part=_part(name),
            unit=_unit(name),
            size=value.numel(),
            local=value.numel() // (tensor if _is_split(name) else 1),
            is_matrix=value.ndim == 2 and not name.startswith(("embedding.", "positions.", "head.")),
            is_sharded=value.ndim >= 2,
            is_trained=not frozen_backbone or is_retrieval_parameter(name),
        )
        for name, value in model.named_parameters()
    ]


def count_parts(parameters: Iterable[Parameter]) -> dict[str, int]:
    """Scalars by part, all of PARTS."""
    counts = dict.fromkeys(PARTS, 0)
    for parameter in parameters:
        counts[parameter.part] += parameter.size
    return counts


def compared_gpt(config: ModelConfig) -> ModelConfig:
    """The GPT of the same decoder: what a RETRO is compared with."""
    return dataclasses.replace(config, cross_attention_layers=(), encoder=EncoderConfig(), gate=GateConfig())


def _part(name: str) -> str:
    if name.startswith(("embedding.", "positions.")):
        return "embedding"
    if name.startswith("encoder."):
        return "encoder"
    if ".cross_attention." in name:
        return "cross_attention"
    return "head" if name.startswith("head.") else "decoder"


def _unit(name: str) -> str:
    """The layer, as in the state dict: `layers.3`, `encoder.layers.0`; "" for the rest."""
    head, separator, rest = name.partition("layers.")
    return f"{head}layers.{rest.split('.')[0]}" if separator else ""


def _is_split(name: str) -> bool:
    """Whether tensor parallelism gives each process a share of the parameter: heads and hidden units."""
    if name.endswith(("query_key_value.weight", "query_key_value.bias", ".up.weight", ".up.bias")):
        return True
    if name.endswith((".query.weight", ".query.bias", ".key_value.weight", ".key_value.bias", ".smear.weight")):
        return True
    return name.endswith((".out.weight", ".down.weight"))
