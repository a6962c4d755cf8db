"""torch.compile is optional: without a C++ compiler training says so once and goes on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from torch._inductor.exc import InvalidCxxCompiler

from retro.model import RetroModel
from retro.train.compiled import compile_or_stay_eager
from retro.train.run import train
from tests.model.builders import TINY, K, R, random_tokens, suffix_mask, tiny
from tests.train import releases


def run(release: Path, root: Path, **environment: str) -> tuple[str, list[dict]]:
    values = releases.settings(release, root, retro=False, compile=True, name="compiled", steps=3, validate_every=0)
    file = releases.write_yaml(root / "compiled.yaml", values)
    done = subprocess.run(
        releases.command(file), capture_output=True, text=True, env=releases.environment(**environment)
    )
    assert done.returncode == 0, done.stderr
    return done.stderr, releases.metrics(root / "compiled", "train")


def eager(release: Path, root: Path) -> list[dict]:
    train(releases.config(release, root, retro=False, name="eager", steps=3, validate_every=0))
    return releases.metrics(root / "eager", "train")


def test_a_model_that_cannot_be_compiled_stays_as_it_was():
    torch.manual_seed(0)
    model, warnings = RetroModel(TINY), []
    x = random_tokens(2, 12)
    before, random = model(x).logits, torch.get_rng_state()

    def rehearse() -> None:
        assert model._compiled_call_impl is not None
        torch.rand(1)
        assert model.static_shapes
        model.forward(x).logits.sum().backward()
        raise InvalidCxxCompiler

    assert not compile_or_stay_eager(model, rehearse, warnings.append)
    assert model._compiled_call_impl is None
    assert len(warnings) == 1
    assert "\n" not in warnings[0]
    assert not model.static_shapes
    assert torch.equal(model(x).logits, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())


def test_an_error_of_the_model_is_no_compiler_problem():
    model = RetroModel(TINY)
    with pytest.raises(ZeroDivisionError):
        compile_or_stay_eager(model, lambda: 1 / 0, pytest.fail)


@pytest.mark.slow
def test_runs_eagerly_where_there_is_no_compiler(release: Path, tmp_path: Path):
    errors, rows = run(release, tmp_path, CXX=str(tmp_path / "absent"), TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    warnings = [line for line in errors.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: compile: true does not work here, training runs without it")
    assert rows == eager(release, tmp_path)


@pytest.mark.slow
def test_compiled_losses_are_the_eager_ones(release: Path, tmp_path: Path):
    errors, rows = run(release, tmp_path)
    assert "compiled in" in errors
    expected = [row["loss"] for row in eager(release, tmp_path)]
    assert [row["loss"] for row in rows] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True], ids=["grid", "packed"])
def test_the_whole_model_compiles_without_a_graph_break(packed: bool):
    """Forward and backward, loss and gradients as without; other masks of the same shapes are not compiled again."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    torch.manual_seed(0)
    model = RetroModel(tiny(smear_keys=True, num_kv_heads=1, dropout=0.0)).train()
    model.static_shapes = True
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
    tokens, neighbors = random_tokens(2, 12), random_tokens(2, 3, K, R, seed=1)
    layout = {}
    if packed:
        starts, ends = torch.tensor([[0] * 5 + [5] * 7] * 2), torch.tensor([[3, 8, -1]] * 2)
        layout = {"document_starts_BN": starts, "chunk_ends_BL": ends}
    for seed in (2, 3):
        mask, scored = suffix_mask(2, 3, seed=seed), torch.rand(2, 12) > 0.3
        results = []
        for function in (compiled, model):
            loss = function(tokens, neighbors, mask, targets_BN=tokens, loss_mask_BN=scored, **layout).loss
            loss.backward()
            results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
            model.zero_grad()
        for fused, plain in zip(*results, strict=True):
            torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1
