"""Activations by calculation against what autograd saves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from retro.config.model import EncoderConfig, GateConfig, ModelConfig
from retro.model.activations.attention import Arithmetic
from retro.model.activations.segments import Batch, forward_segments, loss_bytes, most_activations
from retro.model.retro import RetroModel
from retro.model.retrofit import freeze_backbone

SEQUENCES, LENGTH, CHUNK, NEIGHBORS = 3, 160, 16, 2
SIZES: dict[str, Any] = {"vocab_size": 300, "width": 64, "num_layers": 3, "num_heads": 4, "chunk_length": CHUNK}
LAYER_NORM = {"norm": "layernorm", "bias": True, "ffn": "gelu"}
MODELS: dict[str, dict[str, Any]] = {
    "gpt": {},
    "gpt_layernorm_gelu": LAYER_NORM,
    "gpt_learned_positions": {"positions": "learned", "max_positions": 512, "ffn": "gelu_tanh"},
    "gpt_qk_norm_smear": {"qk_norm": True, "smear_keys": True, "rotary_fraction": 0.5, "embedding_norm": True},
    "gpt_smear": {"smear_keys": True},
    "gpt_grouped_parallel": {"num_kv_heads": 2, "block": "parallel"},
    "gpt_dropout": {"dropout": 0.1},
    "retro": {"cross_attention_layers": (2, 3)},
    "retro_layernorm_gelu": {"cross_attention_layers": (2, 3), **LAYER_NORM},
    "retro_every_layer": {
        "cross_attention_layers": (1, 2, 3),
        "qk_norm": True,
        "smear_keys": True,
        "embedding_norm": True,
        "encoder": EncoderConfig(num_layers=1),
    },
    "retro_narrow_encoder": {"cross_attention_layers": (2,), "encoder": EncoderConfig(num_layers=2, width=32)},
    "retro_encoder_dropout": {"cross_attention_layers": (2,), "encoder": EncoderConfig(num_layers=2, dropout=0.1)},
    "retro_grouped_parallel": {"cross_attention_layers": (2,), "num_kv_heads": 2, "block": "parallel"},
    "retro_gate": {"cross_attention_layers": (2, 3), "gate": GateConfig("learned", 0.0)},
    "retro_unconditioned": {"cross_attention_layers": (2,), "encoder": EncoderConfig(cross_attention_layers=())},
}
CHECKPOINTED = {
    "nothing": (),
    "decoder": ("decoder",),
    "encoder": ("encoder",),
    "cross_attention": ("cross_attention",),
    "all": ("decoder", "cross_attention", "encoder"),
}
CASES = [(m, c) for m in MODELS for c in CHECKPOINTED if m.startswith("retro") or c in ("nothing", "decoder")]


def build(name: str) -> ModelConfig:
    return ModelConfig(**{**SIZES, **MODELS[name]})


def batch_of(config: ModelConfig) -> Batch:
    chunks = SEQUENCES * (LENGTH // CHUNK - 1) if config.is_retro else 0
    return Batch(SEQUENCES, LENGTH, CHUNK, NEIGHBORS, 2 * CHUNK, chunks)


def saved(config: ModelConfig, bf16: bool, checkpointed: tuple[str, ...], frozen: bool = False) -> int:
    """Bytes of the distinct storages that autograd saves, without the weights and their bfloat16 copies."""
    torch.manual_seed(0)
    model = RetroModel(config)
    model.checkpointed = frozenset(checkpointed)
    if frozen:
        freeze_backbone(model)
    tokens = torch.randint(0, 300, (SEQUENCES, LENGTH))
    neighbors = None
    if config.is_retro:
        neighbors = torch.randint(0, 300, (SEQUENCES, LENGTH // CHUNK - 1, NEIGHBORS, 2 * CHUNK))
    found: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.hidden_states(tokens, neighbors)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    copies = [t for p in model.parameters() if p.ndim == 2 for t in (p.detach().bfloat16(), p.detach().bfloat16().t())]
    return sum(
        tensor.untyped_storage().nbytes()
        for place, tensor in found.items()
        if place not in weights
        and not (
            tensor.dtype == torch.bfloat16 and any(torch.equal(tensor, c) for c in copies if c.shape == tensor.shape)
        )
    )


def predicted(config: ModelConfig, bf16: bool, checkpointed: tuple[str, ...], frozen: bool = False) -> int:
    arithmetic = Arithmetic(2 if bf16 else 4, on_cpu=True, frozen=frozen)
    segments = forward_segments(config, batch_of(config), arithmetic, frozenset(checkpointed))
    return sum(segment.kept for segment in segments)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("name", "checkpointed"), CASES)
def test_kept_bytes_are_what_autograd_saves(name: str, checkpointed: str, bf16: bool):
    # What is left out: rotation tables, masks, dropout's and the checkpoints' random states.
    arguments = build(name), bf16, CHECKPOINTED[checkpointed]
    assert predicted(*arguments) == pytest.approx(saved(*arguments), rel=0.02)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("retro")])
def test_a_frozen_backbone_keeps_less(name: str, bf16: bool):
    config = build(name)
    kept = predicted(config, bf16, (), frozen=True)
    assert kept == pytest.approx(saved(config, bf16, (), frozen=True), rel=0.15)
    assert kept < 0.95 * predicted(config, bf16, ())


def test_the_most_is_at_the_middle_or_where_a_part_is_made_again():
    config, arithmetic = build("retro"), Arithmetic(2)
    batch = batch_of(config)
    whole = most_activations(config, batch, arithmetic, frozenset())
    assert whole.recomputed == 0
    assert whole.loss == loss_bytes(config, batch, arithmetic)
    assert whole.kept == whole.whole
    again = most_activations(config, batch, arithmetic, frozenset(CHECKPOINTED["all"]))
    segments = list(forward_segments(config, batch, arithmetic, frozenset(CHECKPOINTED["all"])))
    assert again.recomputed >= max(segment.whole - segment.kept for segment in segments[4:])
    assert again.total < whole.total
    assert again.whole == whole.whole


def test_tensor_parallelism_shares_what_is_within_layers_only():
    config, batch = build("retro"), batch_of(build("retro"))
    one, two, four = (
        sum(s.kept for s in forward_segments(config, batch, Arithmetic(2, tensor=count), frozenset()))
        for count in (1, 2, 4)
    )
    assert one - two == pytest.approx(2 * (two - four), rel=0.01)
    assert two > one / 2


def test_a_mask_of_packed_documents_costs_on_a_gpu():
    config = build("gpt")
    plain, packed = Batch(2, 64, CHUNK), Batch(2, 64, CHUNK, packed=True)
    kept = [sum(s.kept for s in forward_segments(config, b, Arithmetic(2), frozenset())) for b in (plain, packed)]
    assert kept[1] - kept[0] == config.num_layers * 2 * 64 * 64 * 2
