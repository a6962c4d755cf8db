"""Blockwise vocabulary projection and cross-entropy against the plain computation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from retro.nn.cross_entropy import linear_cross_entropy, positions_per_block

T, D, V = 13, 8, 29


def inputs(dtype: torch.dtype, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = (scale * torch.randn(T, D, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    weight = (scale * torch.randn(V, D, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, V, (T,), generator=generator)


@pytest.mark.parametrize("block", [1, 4, 13, 100, None])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_plain(block: int | None, dtype: torch.dtype, tolerance: float) -> None:
    hidden, weight, targets = inputs(dtype)
    loss_sum, losses = linear_cross_entropy(hidden, weight, targets, block)
    (loss_sum * 0.3).backward()
    plain_hidden, plain_weight = (x.detach().clone().requires_grad_() for x in (hidden, weight))
    plain = F.cross_entropy(F.linear(plain_hidden, plain_weight), targets, reduction="none")
    (plain.sum() * 0.3).backward()
    torch.testing.assert_close(losses, plain.detach(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(loss_sum, plain.sum(), rtol=tolerance, atol=tolerance * T)
    torch.testing.assert_close(hidden.grad, plain_hidden.grad, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(weight.grad, plain_weight.grad, rtol=tolerance, atol=tolerance)
    assert not losses.requires_grad


def test_gradcheck() -> None:
    hidden, weight, targets = inputs(torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets, 5)[0], (hidden, weight))


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, targets = inputs(torch.float32, scale=60.0)
    loss_sum, losses = linear_cross_entropy(hidden, weight, targets, 4)
    loss_sum.backward()
    plain = F.cross_entropy(F.linear(hidden, weight), targets, reduction="none")
    torch.testing.assert_close(losses, plain.detach())
    assert torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize("block", [4, None])
def test_bfloat16_autocast(block: int | None) -> None:
    """The same products in bfloat16 as the plain computation under autocast; softmax and loss in float32."""
    hidden, weight, targets = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_sum, losses = linear_cross_entropy(hidden, weight, targets, block)
    loss_sum.backward()
    plain_hidden, plain_weight = (x.detach().clone().requires_grad_() for x in (hidden, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = F.cross_entropy(F.linear(plain_hidden, plain_weight), targets, reduction="none")
    plain.sum().backward()
    assert losses.dtype == loss_sum.dtype == torch.float32
    torch.testing.assert_close(losses, plain.detach(), rtol=1e-6, atol=1e-6)
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32
    torch.testing.assert_close(hidden.grad, plain_hidden.grad, rtol=0.02, atol=0.02)
    torch.testing.assert_close(weight.grad, plain_weight.grad, rtol=0.02, atol=0.02)


def test_only_what_needs_a_gradient_gets_one() -> None:
    hidden, weight, targets = inputs(torch.float64)
    linear_cross_entropy(hidden.detach(), weight, targets)[0].backward()
    assert hidden.grad is None
    assert weight.grad is not None
    weight.grad = None
    linear_cross_entropy(hidden, weight.detach(), targets)[0].backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_without_gradients() -> None:
    hidden, weight, targets = inputs(torch.float64)
    expected = linear_cross_entropy(hidden, weight, targets, 4)
    with torch.no_grad():
        loss_sum, losses = linear_cross_entropy(hidden, weight, targets, 4)
    assert torch.equal(losses, expected[1])
    assert not loss_sum.requires_grad


@pytest.mark.parametrize("grad", [True, False])
def test_no_positions(grad: bool) -> None:
    hidden, weight, targets = inputs(torch.float32)
    with torch.set_grad_enabled(grad):
        loss_sum, losses = linear_cross_entropy(hidden[:0], weight, targets[:0])
    assert loss_sum.item() == 0.0
    assert losses.shape == (0,)


def test_blocks_of_an_accelerator_are_larger() -> None:
    """Thin products are what a CPU's cache wants, and what a GPU waits for."""
    assert positions_per_block("cpu", 16384) == 128 and positions_per_block("cpu", 2**30) == 1
    assert positions_per_block("cuda", 50257) > 1000


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("block", [4, None])
def test_positions_that_are_not_scored(block: int | None, training: bool) -> None:
    """They count 0, get no gradient and change nothing for the others, whatever their target."""
    hidden, weight, targets = inputs(torch.float64)
    scored = torch.arange(T) % 3 != 1
    with torch.set_grad_enabled(training):
        loss_sum, losses = linear_cross_entropy(hidden, weight, targets, block, scored)
    expected, picked = linear_cross_entropy(hidden[scored], weight, targets[scored])
    torch.testing.assert_close(loss_sum, expected)
    torch.testing.assert_close(
        losses, torch.zeros(T, dtype=torch.float64).index_copy(0, scored.nonzero()[:, 0], picked)
    )
    if training:
        found = torch.autograd.grad(loss_sum, (hidden, weight))
        wanted = torch.autograd.grad(expected, (hidden, weight))
        torch.testing.assert_close(found, wanted)
        assert not found[0][~scored].any()
