"""The model equals the position-by-position reference of tests/reference, outputs and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from retro.config.model import ModelConfig
from retro.nn.chunked_cross_attention import count_chunks
from tests.model.builders import TINY, K, M, R, as_lists, random_tokens, scrambled, suffix_mask, tiny
from tests.reference.slow_retro import SlowRetro

EXACT = {"rtol": 0.0, "atol": 1e-9}


def compare(
    config: ModelConfig, length: int, *, neighbors: int = K, mask: torch.Tensor | None = None, first: int | None = None
) -> None:
    model = scrambled(config)
    tokens = random_tokens(2, length, seed=1)
    rows = count_chunks(length, M, first or (length - 1) % M + 1)
    retrieved = random_tokens(2, rows, neighbors, R, seed=2)
    if mask is None:
        mask = suffix_mask(2, rows, neighbors, seed=3)
    with torch.no_grad():
        fast = model(tokens, retrieved, mask[:, :rows], first_chunk_length=first).logits
        slow = SlowRetro(config, model.state_dict())
        for b in range(2):
            expected = slow.logits(tokens[b].tolist(), as_lists(retrieved[b], mask[b, :rows]), first)
            torch.testing.assert_close(fast[b], expected, **EXACT)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13])
def test_any_length(length: int) -> None:
    compare(TINY, length)


@pytest.mark.parametrize("first", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 3, 6, 8, 9])
def test_any_first_chunk(length: int, first: int) -> None:
    compare(TINY, length, first=first)


@pytest.mark.parametrize("neighbors", [1, 2, 3])
def test_any_number_of_neighbors(neighbors: int) -> None:
    compare(TINY, 9, neighbors=neighbors)


@pytest.mark.parametrize(
    "changes",
    [
        {"ffn": "gelu", "norm": "layernorm", "bias": True, "tie_embeddings": False},
        {"num_heads": 4, "num_kv_heads": 2},
        {"num_heads": 4, "num_kv_heads": 1, "smear_keys": True, "qk_norm": True},
        {"smear_keys": True},
        {"qk_norm": True},
        {"embedding_norm": True},
        {"rotary_fraction": 0.5, "rotary_base": 100.0},
        {"head_width": 6, "rotary_fraction": 0.7},
        {"encoder_width": 8},
        {"encoder_width": 12, "encoder_num_heads": 3, "bias": True},
        {"encoder_cross_attention_layers": ()},
        {"encoder_cross_attention_layers": (1, 2)},
        {"encoder_num_layers": 1, "encoder_ffn_width": 5},
        {"cross_attention_layers": (1,)},
        {"cross_attention_layers": (1, 2, 3), "norm_eps": 0.1},
        {"positions": "learned", "max_positions": 16, "bias": True, "ffn": "gelu_tanh", "norm": "layernorm"},
        {"positions": "learned", "max_positions": 16, "encoder_width": 8, "smear_keys": True},
        {"block": "parallel", "ffn": "gelu", "norm": "layernorm", "bias": True, "rotary_fraction": 0.25},
        {"attention_bias": True},
        {"ffn_bias": True, "ffn": "gelu"},
        {"attention_bias": False, "bias": True},
        {"rotary_scaling_kind": "linear", "rotary_scaling_factor": 3.0},
        {
            "rotary_scaling_kind": "llama3",
            "rotary_scaling_factor": 8.0,
            "rotary_scaling_original_positions": 64,
            "rotary_base": 500.0,
        },
        {"gate_value": 0.3},
        {"gate_value": (0.0, 0.7)},
        {"gate_value": (0.7, 0.0)},
        {"gate_kind": "learned", "gate_value": 0.5},
    ],
    ids=lambda changes: ",".join(f"{k}={v}" for k, v in changes.items()),
)
@pytest.mark.parametrize("length", [8, 10])
def test_any_architecture(changes: dict[str, object], length: int) -> None:
    compare(tiny(**changes), length)


def test_masks_with_holes() -> None:
    mask = torch.rand((2, 3, K, R), generator=torch.Generator().manual_seed(5)) > 0.6
    compare(TINY, 10, mask=mask)


def test_all_neighbors_whole() -> None:
    """The path without any mask, row selection or placement."""
    compare(TINY, 12, mask=torch.ones((2, 3, K, R), dtype=torch.bool))


def test_whole_neighbors_of_some_chunks() -> None:
    """Row selection without token masks."""
    mask = torch.ones((2, 3, K, R), dtype=torch.bool)
    mask[0, 0] = mask[1, 2] = False
    compare(TINY, 12, mask=mask)


def test_whole_neighbors_some_missing() -> None:
    """Placement of neighbors without masks within a neighbor."""
    mask = torch.ones((2, 3, K, R), dtype=torch.bool)
    mask[0, 0, 1] = mask[1, 2, 0] = mask[1, 1] = False
    compare(TINY, 9, mask=mask)


def test_plain_gpt() -> None:
    config = tiny(cross_attention_layers=())
    model = scrambled(config)
    tokens = random_tokens(1, 7)
    with torch.no_grad():
        expected = SlowRetro(config, model.state_dict()).logits(tokens[0].tolist())
        torch.testing.assert_close(model(tokens).logits[0], expected, **EXACT)


@pytest.mark.parametrize("gate", [0.0, 0.3])
def test_gate(gate: float) -> None:
    model = scrambled(TINY)
    model.gate = gate
    tokens, retrieved, mask = random_tokens(1, 8), random_tokens(1, 2, K, R, seed=2), suffix_mask(1, 2, seed=1)
    with torch.no_grad():
        slow = SlowRetro(TINY, model.state_dict(), gate)
        expected = slow.logits(tokens[0].tolist(), as_lists(retrieved[0], mask[0]))
        torch.testing.assert_close(model(tokens, retrieved, mask).logits[0], expected, **EXACT)


@pytest.mark.parametrize("changes", [{}, {"smear_keys": True, "qk_norm": True, "num_kv_heads": 1, "encoder_width": 8}])
def test_gradients(changes: dict[str, object]) -> None:
    """Every parameter's gradient of the masked mean loss, through the fused cross-entropy."""
    config = tiny(**changes)
    model = scrambled(config)
    length, rows = 6, 2
    tokens, targets = random_tokens(1, length, seed=1), random_tokens(1, length, seed=4)
    retrieved, mask = random_tokens(1, rows, K, R, seed=2), suffix_mask(1, rows, seed=1)
    loss_mask = torch.tensor([[True, False, True, True, True, False]])
    model(tokens, retrieved, mask, targets_BN=targets, loss_mask_BN=loss_mask).loss.backward()
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    logits = SlowRetro(config, weights).logits(tokens[0].tolist(), as_lists(retrieved[0], mask[0]))
    F.cross_entropy(logits[loss_mask[0]], targets[0][loss_mask[0]]).backward()
    for name, parameter in model.named_parameters():
        expected = weights[name].grad
        assert expected is not None, name
        torch.testing.assert_close(parameter.grad, expected, rtol=0.0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
        assert parameter.grad.abs().max() > 1e-9, f"{name} has no influence"
