"""Gates of chunked cross-attention: 0 is the GPT, bit for bit; learned ones learn."""

from __future__ import annotations

import pytest
import torch

from retro.model import RetroModel
from retro.model.retro import is_retrieval_parameter
from tests.model.builders import TINY, K, R, random_tokens, scrambled, tiny


@pytest.mark.parametrize("block", ["serial", "parallel"])
@pytest.mark.parametrize("kind", ["fixed", "learned"])
def test_gate_zero_is_the_gpt(kind: str, block: str) -> None:
    model = scrambled(tiny(gate_kind=kind, gate_value=0.0, block=block), dtype=torch.float32)
    for layer in model.decoder_layers:
        if layer.cross_attention is not None and layer.cross_attention.gate is not None:
            torch.nn.init.zeros_(layer.cross_attention.gate)
    gpt = RetroModel(tiny(cross_attention_layers=(), block=block)).eval()
    gpt.load_state_dict({n: p for n, p in model.state_dict().items() if not is_retrieval_parameter(n)})
    tokens, neighbors = random_tokens(2, 12), random_tokens(2, 3, K, R)
    with torch.no_grad():
        assert torch.equal(model(tokens, neighbors).logits, gpt(tokens).logits)


def test_learned_gate_starts_where_told_and_learns() -> None:
    model = RetroModel(tiny(gate_kind="learned", gate_value=(0.0, 0.25)))
    gates = [layer.cross_attention.gate for layer in model.decoder_layers if layer.cross_attention is not None]
    assert [g.item() for g in gates] == [0.0, 0.25]
    tokens, neighbors = random_tokens(2, 12), random_tokens(2, 3, K, R)
    model(tokens, neighbors, targets_BN=tokens).loss.backward()
    assert all(float(g.grad) != 0.0 for g in gates)


def test_fixed_gate_has_no_parameter_and_scales_one_layer() -> None:
    names = {n for n, _ in RetroModel(tiny(gate_value=0.5)).named_parameters()}
    assert names == {n for n, _ in RetroModel(TINY).named_parameters()}
    tokens, neighbors = random_tokens(2, 12), random_tokens(2, 3, K, R)
    weights = scrambled(TINY).state_dict()
    outputs = []
    for value in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (1.0, 0.0)):
        model = RetroModel(tiny(gate_value=value)).double().eval()
        model.load_state_dict(weights)
        with torch.no_grad():
            outputs.append(model(tokens, neighbors).logits)
    for i in range(len(outputs)):
        for j in range(i):
            assert not torch.allclose(outputs[i], outputs[j])


def test_layers_that_are_off_get_zero_gradients_and_cost_nothing() -> None:
    """Distributed training waits for a gradient of every parameter."""
    model = scrambled(tiny(gate_value=(1.0, 0.0)))
    calls = []
    model.layers[2].cross_attention.attention.register_forward_hook(lambda *_: calls.append(1))
    tokens, neighbors = random_tokens(2, 12), random_tokens(2, 3, K, R)
    model(tokens, neighbors, targets_BN=tokens).loss.backward()
    assert not calls
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        off = name.startswith("layers.2.cross_attention.")
        assert bool((parameter.grad == 0).all()) == off or name.endswith("norm.weight"), name
