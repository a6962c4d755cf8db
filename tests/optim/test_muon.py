"""Muon against a slow iteration in double precision, torch's own implementation, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from retro.model import RetroModel
from retro.nn.linear import Linear
from retro.optim.combined import CombinedOptimizer
from retro.optim.muon import ADAMW_RMS, Fused, Muon, build_muon, hidden_matrices, orthogonalise
from tests.model.builders import K, M, R, random_tokens, tiny

SETTINGS = {"learning_rate": 0.02, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}


def slow_orthogonalise(matrix: np.ndarray) -> np.ndarray:
    """p(X) = a X + b (X X^T) X + c (X X^T)^2 X, five times, by the singular values: U p(S) V^T."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ np.diag(s) @ vt


@pytest.mark.parametrize("shape", [(12, 12), (8, 20), (33, 7), (1, 9)])
def test_orthogonalise_is_the_published_iteration(shape: tuple[int, int]):
    matrix = np.random.default_rng(0).standard_normal(shape)
    found = orthogonalise(torch.from_numpy(matrix)).double().numpy()
    expected = slow_orthogonalise(matrix)
    assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)  # bfloat16 has 8 bits
    singular = np.linalg.svd(found, compute_uv=False)
    assert singular.min() > 0.6 and singular.max() < 1.3


def test_zeros_stay_zeros():
    assert torch.equal(orthogonalise(torch.zeros(4, 6)), torch.zeros(4, 6, dtype=torch.bfloat16))


def gradients(shape: tuple[int, ...], count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def take_steps(optimizer: Optimizer, parameter: Tensor, grads: list[Tensor]) -> Tensor:
    for gradient in grads:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(10, 6), (6, 10)])
def test_a_single_matrix_moves_as_with_torch(shape: tuple[int, int]):
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.empty(shape))
    theirs.data.copy_(ours)
    other = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    found = take_steps(Muon([ours], 0.1, 0.3), ours, gradients(shape))
    torch.testing.assert_close(found, take_steps(other, theirs, gradients(shape)), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("shape", [(32, 32), (64, 16), (16, 64)])
def test_an_update_is_as_large_as_one_of_adamw(shape: tuple[int, int]):
    parameter = nn.Parameter(torch.zeros(shape))
    moved = take_steps(Muon([parameter], 0.5, 0.0), parameter, gradients(shape, 1))
    assert moved.square().mean().sqrt().item() == pytest.approx(0.5 * ADAMW_RMS, rel=0.25)


def test_fused_matrices_are_orthogonalised_one_by_one():
    parts, width = (6, 2, 2), 8
    grads = gradients((10, width))
    fused = nn.Parameter(torch.ones(10, width))
    found = take_steps(Muon([fused], 0.1, 0.3, {fused: Fused(parts, None)}), fused, grads)
    alone = []
    for rows, size in zip(np.split(np.arange(10), np.cumsum(parts)[:-1]), parts, strict=True):
        parameter = nn.Parameter(torch.ones(size, width))
        alone.append(take_steps(Muon([parameter], 0.1, 0.3), parameter, [g[rows] for g in grads]))
    assert torch.equal(found, torch.cat(alone))
    together = nn.Parameter(torch.ones(10, width))
    moved = take_steps(Muon([together], 0.1, 0.3), together, grads)
    assert (found - moved).norm() > 0.1 * (found - 1).norm()


def test_the_order_of_the_rows_does_not_matter():
    order = torch.tensor([0, 1, 2, 6, 8, 3, 4, 5, 7, 9])
    grads = gradients((10, 8))
    usual, other = nn.Parameter(torch.ones(10, 8)), nn.Parameter(torch.ones(10, 8))
    first = take_steps(Muon([usual], 0.1, 0.3, {usual: Fused((6, 2, 2), None)}), usual, grads)
    permuted = [g[order] for g in grads]
    second = take_steps(Muon([other], 0.1, 0.3, {other: Fused((6, 2, 2), order)}), other, permuted)
    assert torch.equal(second, first[order])


def test_who_is_updated_by_what():
    config = tiny(bias=True, qk_norm=True, smear_keys=True, tie_embeddings=False, encoder_width=8, gate_kind="learned")
    model = RetroModel(config)
    optimizer = build_muon(model, **SETTINGS)
    named = {p: n for n, p in model.named_parameters()}
    groups = [{named[p] for p in group["params"]} for group in optimizer.param_groups]
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    assert decays == [0.1, 0.1, 0.0]
    assert sum(map(len, groups)) == len(named) == len(set().union(*groups))
    assert groups[0] == set(hidden_matrices(model))
    assert groups[1] == {"embedding.weight", "head.weight"}
    assert all(p.ndim == 1 for p, name in named.items() if name in groups[2])
    assert "layers.1.cross_attention.gate" in groups[2]
    for name in ("layers.0.attention.query_key_value", "layers.1.cross_attention.attention.key_value", "encoder.input"):
        assert f"{name}.weight" in groups[0]
    fused = {n: m.parts for n, m in hidden_matrices(model).items() if len(m.parts) > 1}
    assert fused["layers.0.attention.query_key_value.weight"] == (16, 16, 16)
    assert fused["layers.1.cross_attention.attention.key_value.weight"] == (16, 16)
    assert fused["encoder.layers.0.feed_forward.up.weight"] == (64, 64)


def test_frozen_parameters_are_left_out():
    model = RetroModel(tiny())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("encoder."))
    optimizer = build_muon(model, **SETTINGS)
    names = {n for n, p in model.named_parameters() if any(p is q for g in optimizer.param_groups for q in g["params"])}
    assert names == {n for n, _ in model.named_parameters() if n.startswith("encoder.")}
    model.encoder.requires_grad_(False)
    model.embedding.requires_grad_(True)
    assert [len(group["params"]) for group in build_muon(model, **SETTINGS).param_groups] == [1]


def train(model: RetroModel, optimizer: Optimizer, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        tokens = (torch.arange(17) * 3 + torch.tensor([[step], [2 * step + 1]])) % 23
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 100)
        optimizer.zero_grad()
        loss = model(
            tokens[:, :-1], random_tokens(2, 4, K, R, seed=step), targets_BN=tokens[:, 1:], first_chunk_length=M
        ).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_resumed_from_its_state_it_goes_on_bit_for_bit():
    torch.manual_seed(0)
    model = RetroModel(tiny())
    optimizer = build_muon(model, **SETTINGS)
    train(model, optimizer, 0, 3)
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    state = torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, optimizer.state_dict())
    expected = train(model, optimizer, 3, 6)
    other = RetroModel(tiny())
    other.load_state_dict(weights)
    resumed = build_muon(other, **SETTINGS)
    resumed.load_state_dict(state)
    assert train(other, resumed, 3, 6) == expected
    assert all(isinstance(v, Tensor) for entry in resumed.state.values() for v in entry.values())


def test_it_learns():
    torch.manual_seed(0)
    model = RetroModel(tiny(embedding_norm=True))
    losses = train(model, build_muon(model, **SETTINGS), 0, 40)
    assert losses[0] > 3.0
    assert sum(losses[-5:]) / 5 < 0.7


def test_a_rate_of_zero_moves_nothing_but_the_momentum():
    parameter = nn.Parameter(torch.ones(3, 4))
    optimizer = Muon([parameter], 0.0, 0.5)
    take_steps(optimizer, parameter, gradients((3, 4), 1))
    assert torch.equal(parameter.detach(), torch.ones(3, 4))
    assert optimizer.state[parameter]["momentum_buffer"].abs().sum() > 0


def test_closures_are_evaluated_once():
    layer = Linear(3, 2, bias=True)
    nn.init.normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = CombinedOptimizer([Muon([layer.weight], 0.1, 0.0), torch.optim.SGD([layer.bias], lr=0.1)])
    calls = []

    def closure() -> float:
        calls.append(1)
        loss = layer(torch.ones(1, 3)).square().sum()
        loss.backward()
        return loss.item()

    before = layer(torch.ones(1, 3)).square().sum().item()
    assert optimizer.step(closure) == pytest.approx(before)
    assert calls == [1] and layer.bias.abs().sum() > 0
