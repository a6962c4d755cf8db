"""The loss, equal starts of GPT and RETRO, misuse, precision and compilation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from retro.model import RetroModel, count_parameters
from retro.model.retro import is_retrieval_parameter
from tests.model.builders import TINY, K, M, R, V, random_tokens, scrambled, suffix_mask, tiny

GPT = tiny(cross_attention_layers=())


def test_gpt_and_retro_of_one_seed_start_equal() -> None:
    torch.manual_seed(7)
    gpt = RetroModel(GPT)
    torch.manual_seed(7)
    retro = RetroModel(TINY)
    torch.manual_seed(8)
    other = RetroModel(GPT)
    shared, whole = gpt.state_dict(), retro.state_dict()
    assert {n for n in whole if not is_retrieval_parameter(n)} == set(shared)
    assert any(is_retrieval_parameter(n) for n in whole)
    for name, value in shared.items():
        assert torch.equal(value, whole[name]), name
    assert not torch.equal(gpt.embedding.weight, other.embedding.weight)
    tokens = random_tokens(2, 9)
    assert torch.equal(gpt(tokens).logits, retro(tokens).logits)


def test_construction_draws_equally_from_the_random_stream() -> None:
    """What follows (dropout, say) does not depend on which of the two models was built."""
    draws = []
    for config in (GPT, TINY):
        torch.manual_seed(0)
        RetroModel(config)
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


def test_initial_scale() -> None:
    model = RetroModel(tiny(width=64, num_heads=4, ffn_width=None, num_layers=8))
    layer = model.layers[0]
    assert layer.feed_forward.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert layer.feed_forward.down.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert model.encoder is not None
    assert model.encoder.layers[0].attention.out.weight.std().item() == pytest.approx(0.02 / 2, rel=0.05)
    assert torch.equal(model.norm.weight, torch.ones(64))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("masked", [True, False])
def test_loss_equals_cross_entropy_of_the_logits(reduction: str, masked: bool) -> None:
    model = scrambled(TINY)
    tokens, targets = random_tokens(2, 10, seed=1), random_tokens(2, 10, seed=5)
    neighbors, mask = random_tokens(2, 3, K, R, seed=2), suffix_mask(2, 3, seed=3)
    scored = torch.rand((2, 10), generator=torch.Generator().manual_seed(1)) > 0.4 if masked else None
    out = model(tokens, neighbors, mask, targets_BN=targets, loss_mask_BN=scored, reduction=reduction)
    each = F.cross_entropy(model(tokens, neighbors, mask).logits.transpose(1, 2), targets, reduction="none")
    if scored is not None:
        each = torch.where(scored, each, 0.0)
    count = int(scored.sum()) if scored is not None else 20
    assert out.logits is None
    assert int(out.num_scored) == count
    torch.testing.assert_close(out.token_losses_BN, each.detach())
    torch.testing.assert_close(out.loss_sum, each.sum())
    torch.testing.assert_close(out.loss, each.sum() / (count if reduction == "mean" else 1))


def test_targets_are_read_where_scored_only() -> None:
    model = scrambled(GPT)
    tokens = random_tokens(1, 5)
    scored = torch.tensor([[True, True, False, True, False]])
    out = model(tokens, targets_BN=torch.where(scored, tokens, -100), loss_mask_BN=scored)
    assert torch.equal(out.loss, model(tokens, targets_BN=tokens, loss_mask_BN=scored).loss)


def test_nothing_scored_is_a_loss_of_zero_with_zero_gradients() -> None:
    model = scrambled(GPT)
    tokens = random_tokens(1, 5)
    out = model(tokens, targets_BN=tokens, loss_mask_BN=torch.zeros((1, 5), dtype=torch.bool))
    out.loss.backward()
    assert out.loss.item() == 0.0
    assert int(out.num_scored) == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_evaluation_gives_the_training_loss() -> None:
    model = scrambled(TINY)
    tokens, neighbors = random_tokens(2, 8, seed=1), random_tokens(2, 2, K, R, seed=2)
    with torch.no_grad():
        off = model(tokens, neighbors, targets_BN=tokens)
    on = model(tokens, neighbors, targets_BN=tokens)
    assert not off.loss.requires_grad
    torch.testing.assert_close(on.loss.detach(), off.loss)
    torch.testing.assert_close(on.token_losses_BN, off.token_losses_BN)


def test_micro_batches_add_up() -> None:
    """Sums over micro-batches, divided by the number of scored tokens, give the gradient of the whole batch."""
    model = scrambled(TINY)
    tokens, neighbors, mask = random_tokens(4, 8, seed=1), random_tokens(4, 2, K, R, seed=2), suffix_mask(4, 2, seed=3)
    scored = torch.rand((4, 8), generator=torch.Generator().manual_seed(1)) > 0.4
    model(tokens, neighbors, mask, targets_BN=tokens, loss_mask_BN=scored).loss.backward()
    whole = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    for i in range(4):
        part = slice(i, i + 1)
        out = model(
            tokens[part],
            neighbors[part],
            mask[part],
            targets_BN=tokens[part],
            loss_mask_BN=scored[part],
            reduction="sum",
        )
        (out.loss / scored.sum()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name], rtol=0, atol=1e-9)


def test_batch_without_any_neighbor_gives_zero_gradients_to_retrieval() -> None:
    """Not none: distributed training waits for a gradient of every parameter. A gate of 0 does leave them none."""
    model = scrambled(TINY, dtype=torch.float32)
    tokens, neighbors = random_tokens(1, 8), random_tokens(1, 2, K, R, seed=1)
    empty = torch.zeros_like(neighbors, dtype=torch.bool)
    model(tokens, neighbors, empty, targets_BN=tokens).loss.backward()
    retrieval = {n: p for n, p in model.named_parameters() if is_retrieval_parameter(n)}
    assert all(p.grad is not None and not p.grad.any() for p in retrieval.values())
    model.zero_grad()
    model.gate = 0.0
    model(tokens, neighbors, targets_BN=tokens).loss.backward()
    assert all(p.grad is None for p in retrieval.values())


@pytest.mark.parametrize("changes", [{}, {"num_kv_heads": 1, "smear_keys": True, "qk_norm": True}])
def test_bfloat16_autocast_is_near_float32(changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = RetroModel(tiny(width=32, num_heads=2, **changes))
    tokens, neighbors, mask = random_tokens(2, 10, seed=1), random_tokens(2, 3, K, R, seed=2), suffix_mask(2, 3, seed=3)
    exact = model(tokens, neighbors, mask, targets_BN=tokens)
    exact.loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(tokens, neighbors, mask, targets_BN=tokens)
    rough.loss.backward()
    assert rough.loss.dtype == torch.float32
    assert rough.loss.item() == pytest.approx(exact.loss.item(), rel=2e-3)
    assert rough.loss.item() != exact.loss.item()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32
        difference = (parameter.grad - gradients[name]).norm() / gradients[name].norm().clamp_min(1e-6)
        assert difference < 0.1, name


def test_dropout_acts_in_training_only() -> None:
    model = scrambled(tiny(dropout=0.3, encoder_dropout=0.3), dtype=torch.float32)
    tokens, neighbors = random_tokens(1, 8), random_tokens(1, 2, K, R, seed=1)
    with torch.no_grad():
        assert not torch.equal(model(tokens, neighbors).logits, model(tokens, neighbors).logits)
        model.eval()
        assert torch.equal(model(tokens, neighbors).logits, model(tokens, neighbors).logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"neighbors_BLKR": random_tokens(1, 3, K, R)}, "expected \\[1, at most 2, K, R\\]"),
        ({"neighbors_BLKR": random_tokens(2, 2, K, R)}, "expected \\[1, at most 2"),
        (
            {
                "neighbors_BLKR": random_tokens(1, 2, K, R),
                "neighbor_mask_BLKR": torch.ones((1, 2, K, R - 1), dtype=torch.bool),
            },
            "expected the shape of neighbors_BLKR",
        ),
        ({"neighbor_mask_BLKR": torch.ones((1, 2, K, R), dtype=torch.bool)}, "without neighbors_BLKR"),
        ({"first_chunk_length": M + 1}, "expected 1..4"),
        ({"targets_BN": random_tokens(1, 7)}, "targets_BN: expected shape"),
        (
            {"targets_BN": random_tokens(1, 8), "loss_mask_BN": torch.ones(8, dtype=torch.bool)},
            "loss_mask_BN: expected",
        ),
        ({"reduction": "none"}, "expected 'mean' or 'sum'"),
    ],
)
def test_misuse_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RetroModel(TINY)(random_tokens(1, 8), **arguments)


def test_gpt_refuses_neighbors() -> None:
    with pytest.raises(ValueError, match="plain GPT"):
        RetroModel(GPT)(random_tokens(1, 8), random_tokens(1, 2, K, R))


def test_count_parameters_counts_tied_weights_once() -> None:
    tied, untied = RetroModel(GPT), RetroModel(tiny(cross_attention_layers=(), tie_embeddings=False))
    assert count_parameters(untied) - count_parameters(tied) == V * 16


@pytest.mark.slow
def test_compiled_model_with_changing_neighbors() -> None:
    """Different numbers of neighbors from batch to batch, forward and backward, equal the plain model."""
    model = scrambled(TINY, dtype=torch.float32)
    compiled = torch.compile(model)
    tokens, neighbors = random_tokens(2, 12, seed=1), random_tokens(2, 3, K, R, seed=2)
    for seed in range(4):
        mask = suffix_mask(2, 3, seed=seed)
        gradients = []
        for run in (model, compiled):
            model.zero_grad()
            loss = run(tokens, neighbors, mask, targets_BN=tokens).loss
            loss.backward()
            gradients.append((loss.detach(), *(p.grad.clone() for p in model.parameters())))
        for plain, fast in zip(*gradients, strict=True):
            torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-4)
