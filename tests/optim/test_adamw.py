"""The optimizer against the published update, and which parameters decay."""

import torch
from torch import nn

from retro.config.model import ModelConfig
from retro.model import RetroModel
from retro.optim.adamw import build_adamw, decay_groups


def test_matrices_decay_and_vectors_do_not():
    config = ModelConfig(
        vocab_size=11, width=8, num_layers=2, num_heads=2, chunk_length=4, bias=True, smear_keys=True, qk_norm=True,
        cross_attention_layers=(2,),
    )  # fmt: skip
    model = RetroModel(config)
    decayed, plain = decay_groups(model)
    shapes = {name: p.ndim for name, p in model.named_parameters()}
    assert sorted(decayed + plain) == sorted(shapes)
    assert "embedding.weight" in decayed
    assert all(shapes[name] >= 2 for name in decayed)
    assert all(shapes[name] < 2 for name in plain)
    assert any(name.endswith("norm.weight") for name in plain)
    assert any(name.endswith(".bias") for name in plain)


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].requires_grad_(False)
    assert decay_groups(model) == (["1.weight"], ["1.bias"])


def test_updates_as_the_paper_says():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    rate, decay, (beta1, beta2), eps = 0.1, 0.5, (0.8, 0.9), 1e-6
    optimizer = build_adamw(model, learning_rate=rate, weight_decay=decay, betas=(beta1, beta2), eps=eps)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in expected.items()}
    second = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step in range(1, 4):
        x = torch.randn(5, 3, dtype=torch.float64)
        model.zero_grad()
        model(x).square().sum().backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            first[name] = beta1 * first[name] + (1 - beta1) * p.grad
            second[name] = beta2 * second[name] + (1 - beta2) * p.grad**2
            update = first[name] / (1 - beta1**step) / ((second[name] / (1 - beta2**step)).sqrt() + eps)
            shrink = 1 - rate * decay if p.ndim >= 2 else 1.0
            expected[name] = expected[name] * shrink - rate * update
        optimizer.step()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name], rtol=1e-10, atol=1e-12)
