"""Tensor parallelism: every process computes a share of each layer, and together they compute the layer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from retro.config.errors import ConfigError
from retro.config.model import ModelConfig
from retro.model import RetroModel
from retro.model.shards import row_orders
from tests.model.builders import K, M, R, random_tokens, scrambled, suffix_mask, tiny
from tests.train.worlds import run_world

HEADS = {"num_heads": 4, "head_width": 6, "encoder_num_heads": 4}
CONFIGS: dict[str, ModelConfig] = {
    "plain": tiny(**HEADS),
    "grouped": tiny(num_heads=8, head_width=4, num_kv_heads=4, encoder_num_heads=4, qk_norm=True, smear_keys=True),
    "biases": tiny(**HEADS, bias=True, norm="layernorm", ffn="gelu", tie_embeddings=False, encoder_width=24),
    "gated": tiny(**HEADS, block="parallel", gate_kind="learned", positions="learned", max_positions=64, bias=True),
    "gpt": tiny(num_heads=4, cross_attention_layers=()),
}


def inputs(config: ModelConfig, documents: bool = False) -> dict[str, Tensor]:
    """A batch of two sequences of four chunks; some neighbors are missing or short."""
    length, chunks = 4 * M, 4
    batch: dict[str, Tensor] = {"tokens_BN": random_tokens(2, length), "targets_BN": random_tokens(2, length, seed=1)}
    if documents:
        batch["document_starts_BN"] = torch.tensor([[0] * 6 + [6] * 10, [0] * 16])
    if config.is_retro:
        batch["neighbors_BLKR"] = random_tokens(2, chunks, K, R, seed=2)
        batch["neighbor_mask_BLKR"] = suffix_mask(2, chunks)
        if documents:
            batch["chunk_ends_BL"] = torch.tensor([[3, 9, 13, -1], [3, 7, 11, 15]])
    return batch


def in_order(name: str, tensor: Tensor, orders: dict[str, Tensor]) -> Tensor:
    """The whole tensor of a parameter or gradient, rows as without tensor parallelism."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    if name not in orders:
        return whole
    out = torch.empty_like(whole)
    out[orders[name]] = whole
    return out


def gradients(model: RetroModel, batch: dict[str, Tensor], autocast: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(**batch, reduction="sum")
    output.loss.backward()
    orders = row_orders(model)
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return output.token_losses_BN.detach(), {n: in_order(n, g, orders).detach() for n, g in found.items()}


def parallel(model: RetroModel, world: int) -> RetroModel:
    from retro.train.parallel.tensor_parallel import apply_tensor_parallel

    shared = copy.deepcopy(model)
    apply_tensor_parallel(shared, init_device_mesh("cpu", (world,)))
    return shared


def compare(rank: int, world: int, names: tuple[str, ...]) -> None:
    """Forward pass and gradients of the shared model are those of the whole one."""
    for name in names:
        config = CONFIGS[name]
        model = scrambled(config)
        shared = parallel(model, world)
        heads = shared.layers[0].attention.query_key_value.weight.to_local().shape[0]
        assert heads * world == model.layers[0].attention.query_key_value.weight.shape[0]
        for documents in (False, True):
            batch = inputs(config, documents)
            losses, expected = gradients(model, batch)
            for parts in (frozenset(), frozenset({"decoder", "cross_attention", "encoder"})):
                shared.checkpointed = parts if config.is_retro else parts & {"decoder"}
                found_losses, found = gradients(shared, batch)
                torch.testing.assert_close(found_losses, losses, rtol=1e-10, atol=1e-10)
                assert found.keys() == expected.keys()
                for parameter, gradient in expected.items():
                    torch.testing.assert_close(found[parameter], gradient, rtol=1e-9, atol=1e-9)


def compare_bf16(rank: int, world: int) -> None:
    """Under autocast the shares are summed in bfloat16: as close to the exact result as the whole model is, nearly."""
    config = CONFIGS["biases"]
    exact = scrambled(config, dtype=torch.float32)
    losses, expected = gradients(exact, inputs(config))
    whole_losses, whole = gradients(exact, inputs(config), autocast=True)
    shared_losses, shared = gradients(parallel(exact, world), inputs(config), autocast=True)
    assert (shared_losses - losses).abs().mean() < 2 * (whole_losses - losses).abs().mean()
    for name, gradient in expected.items():
        allowed = 2.5 * (whole[name] - gradient).norm() + 1e-3 * gradient.norm()
        assert (shared[name] - gradient).norm() <= allowed, name


def compare_unused(rank: int, world: int) -> None:
    """A batch without neighbors has zero gradients for retrieval, and none are missing."""
    config = CONFIGS["grouped"]
    batch = inputs(config)
    batch["neighbor_mask_BLKR"] = torch.zeros_like(batch["neighbor_mask_BLKR"])
    model = scrambled(config)
    _, expected = gradients(model, batch)
    _, found = gradients(parallel(model, world), batch)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-9)


def same_start(rank: int, world: int) -> None:
    """Drawn in place, from nothing, a shared model has the numbers of the whole one."""
    from retro.train.parallel.tensor_parallel import apply_tensor_parallel

    for changes in ({}, {"attention_init": "mimetic", "embedding_norm": True}):
        config = tiny(num_heads=8, head_width=4, num_kv_heads=4, encoder_num_heads=4, smear_keys=True, **changes)
        torch.manual_seed(3)
        model = RetroModel(config)
        with torch.device("meta"):
            shared = RetroModel(config)
        apply_tensor_parallel(shared, init_device_mesh("cpu", (world,)))
        shared.to_empty(device="cpu")
        torch.manual_seed(3)
        shared.draw_weights()
        orders = row_orders(shared)
        state = shared.state_dict()
        assert list(state) == list(model.state_dict())
        for name, tensor in model.state_dict().items():
            assert torch.equal(in_order(name, state[name], orders), tensor), name


def dropout(rank: int, world: int) -> dict[str, Any]:
    """What the processes draw: for whole activations the same, for the heads of each not."""
    config = tiny(num_heads=4, head_width=6, encoder_num_heads=4, dropout=0.3)
    shared = parallel(scrambled(config), world)
    torch.manual_seed(5)
    losses, _ = gradients(shared, inputs(config))
    ones = torch.ones(1, 8, 2, 6)
    with shared.layers[0].attention.share.draws(ones.device, 0.5):
        drawn = torch.rand(4)
    return {"losses": losses.tolist(), "drawn": drawn.tolist(), "after": torch.rand(4).tolist()}


def both(rank: int, world: int) -> dict[str, Any]:
    compare(rank, world, ("grouped", "biases"))
    compare_unused(rank, world)
    same_start(rank, world)
    return dropout(rank, world)


def all_configs(rank: int, world: int) -> None:
    compare(rank, world, tuple(CONFIGS))
    compare_bf16(rank, world)
    same_start(rank, world)


def test_two_processes_compute_what_one_does(tmp_path: Path):
    first, second = run_world(2, both, tmp_path, 2)
    assert first["losses"] == second["losses"]
    assert first["after"] == second["after"]
    assert first["drawn"] != second["drawn"]


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_every_kind_of_layer(tmp_path: Path, world: int):
    run_world(world, all_configs, tmp_path, world)


@pytest.mark.parametrize(
    ("changes", "tensor", "message"),
    [
        ({"num_heads": 4}, 3, "4 attention heads (model.num_heads), found 3"),
        ({"num_heads": 4, "num_kv_heads": 2}, 4, "2 key-value heads (model.num_kv_heads), found 4"),
        ({"ffn_width": 25}, 2, "25 feed-forward units (model.ffn_width), found 2"),
        ({"num_heads": 4, "encoder_num_heads": 2}, 4, "2 attention heads of the encoder (model.encoder.num_heads)"),
        ({"encoder_ffn_width": 9}, 2, "9 feed-forward units of the encoder (model.encoder.ffn_width)"),
    ],
)
def test_a_model_that_cannot_be_divided_is_refused(changes: dict[str, Any], tensor: int, message: str):
    from retro.train.parallel.tensor_parallel import check_tensor_parallel

    with pytest.raises(ConfigError) as error:
        check_tensor_parallel(tiny(**changes), tensor)
    assert message in str(error.value) and str(error.value).startswith("parallel.tensor: ")
    assert "\n" not in str(error.value)
