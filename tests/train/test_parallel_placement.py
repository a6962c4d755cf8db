"""Models built in parts: the same numbers as in one process, each process holding its own only."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from retro.artifacts.checkpoint_folders import list_checkpoints
from retro.config.loader import from_dict
from retro.config.model import ModelConfig
from retro.config.parallel import ParallelConfig
from retro.config.train import TrainConfig
from retro.model import RetroModel
from retro.model.shards import fill_parameter
from retro.train.distributed import Processes
from retro.train.parallel.gradients import BUCKET_BYTES, average_gradients, scale_and_clip
from retro.train.parallel.placement import build_model
from tests.model.builders import tiny
from tests.train import releases
from tests.train.curves import join, local, whole
from tests.train.worlds import run_world

CONFIGS = {
    "plain": tiny(),
    # Fewer rows than processes; scalars; an encoder of another width, whose input projection the rest refers to.
    "mimetic": tiny(
        attention_init="mimetic",
        embedding_norm=True,
        qk_norm=True,
        smear_keys=True,
        encoder_width=24,
        gate_kind="learned",
    ),
    "odd": tiny(ffn_width=3, ffn="gelu", bias=True, norm="layernorm", positions="learned", max_positions=33),
}


def built(rank: int, world: int, config: ModelConfig, parallel: dict[str, Any]) -> tuple[dict[str, np.ndarray], int]:
    """The whole weights, and how many scalars of them this process has."""
    join(rank, world)
    processes = Processes(Accelerator(cpu=True), "fp32", ParallelConfig(**parallel))
    model = build_model(config, processes, seed=5)
    held = sum(local(p).numel() for p in model.parameters())
    return {name: whole(p).numpy() for name, p in model.state_dict().items()}, held


@pytest.mark.parametrize("name", CONFIGS)
def test_initial_weights_are_those_of_one_process(tmp_path: Path, name: str) -> None:
    config = CONFIGS[name]
    torch.manual_seed(5)
    expected = RetroModel(config).state_dict()
    for weights, held in run_world(2, built, tmp_path, 2, config, {"strategy": "fsdp"}):
        assert list(weights) == list(expected)
        assert all(np.array_equal(weights[key], tensor.numpy()) for key, tensor in expected.items())
        assert held < 0.6 * sum(tensor.numel() for tensor in expected.values())


@pytest.mark.slow
@pytest.mark.parametrize("shard", [2, 4])
def test_initial_weights_in_four_processes(tmp_path: Path, shard: int) -> None:
    for config in CONFIGS.values():
        torch.manual_seed(5)
        expected = RetroModel(config).state_dict()
        for weights, _ in run_world(4, built, tmp_path, 4, config, {"strategy": "fsdp", "shard": shard}):
            assert all(np.array_equal(weights[key], tensor.numpy()) for key, tensor in expected.items())


def trained(rank: int, world: int, values: dict[str, Any]) -> int:
    from retro.train.run import train

    join(rank, world)
    return train(from_dict(TrainConfig, values)).state.step


@pytest.mark.slow
def test_whole_runs_start_resume_and_are_started_from(release: Path, tmp_path: Path) -> None:
    """A run, one that starts from its weights, and one that gives it retrieval: sharded as alone, stopped and resumed
    by another number of processes."""
    from retro.train.run import train

    common = {"steps": 6, "log_every": 1, "checkpoint_every": 3, "validate_every": 3, "micro_batch": 1}

    def settings(name: str, **changes: Any) -> dict[str, Any]:
        return releases.settings(release, tmp_path, **{"name": name, **common, **changes})

    def start(name: str, base: str) -> dict[str, Any]:
        if base == "":
            return settings(name, retro=False)
        values = settings(name)
        del values["model"]
        if base == "init_from":
            return {**values, "init_from": str(tmp_path / "base")}
        parts = {"base": str(tmp_path / "base"), "cross_attention_layers": [2], "encoder": {"num_layers": 1}}
        return {**values, "retrofit": parts, "freeze_backbone": True}

    train(from_dict(TrainConfig, settings("base", retro=False)))
    for base in ("", "init_from", "retrofit"):
        one, two = f"one-{base}", f"two-{base}"
        train(from_dict(TrainConfig, start(one, base)))
        sharded = {**start(two, base), "parallel": {"strategy": "fsdp"}}
        assert run_world(2, trained, tmp_path / "world", 2, sharded, timeout=120) == [6, 6]
        rows = [releases.metrics(tmp_path / name, "train") for name in (one, two)]
        for a, b in zip(*rows, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
            assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
        losses = [row["loss"] for row in rows[1]]
        for world, parallel in ((1, {}), (4, {"strategy": "fsdp", "shard": 2})):
            folder = tmp_path / two / "checkpoints"
            shutil.rmtree(list_checkpoints(folder)[-1][1])
            resumed = {**start(two, base), "parallel": parallel}
            if world == 1:
                train(from_dict(TrainConfig, resumed))
            else:
                run_world(world, trained, tmp_path / "world", world, resumed, timeout=120)
            found = [row["loss"] for row in releases.metrics(tmp_path / two, "train")]
            assert found == pytest.approx(losses, rel=1e-5)


def filled(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    for shape in ((5, 3), (1, 4), (4, 6), (3,)):
        content = torch.arange(float(torch.Size(shape).numel())).view(shape)
        placements = [
            [Shard(0), Replicate()],
            [Replicate(), Shard(0)],
            [Shard(0), Shard(0)],
            [Replicate(), Replicate()],
        ]
        if len(shape) > 1:
            placements += [[Shard(1), Shard(0)], [Replicate(), Shard(1)]]
        for placement in placements:
            target = distribute_tensor(torch.zeros(shape), mesh, placement)
            fill_parameter(target, content)
            assert torch.equal(target.full_tensor(), content), (shape, placement)
    with pytest.raises(ValueError, match="expected a tensor of shape"):
        fill_parameter(torch.zeros(2), torch.zeros(3))
    partial = DTensor.from_local(torch.zeros(2), mesh, [Partial(), Replicate()])
    with pytest.raises(ValueError, match="sharded or replicated"):
        fill_parameter(partial, torch.zeros(2))


@pytest.mark.slow
def test_parts_are_filled_wherever_they_lie(tmp_path: Path) -> None:
    run_world(4, filled, tmp_path)


def clipped(rank: int, limit: float | None) -> None:
    """Parameters that are whole, on one dimension of a mesh, on two, and on another mesh of the same processes."""
    square, line = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b")), init_device_mesh("cpu", (4,))
    generator = torch.Generator().manual_seed(0)
    layouts: list[tuple[Any, list[Any]] | None] = [
        None,
        (square["a"], [Shard(0)]),
        (square, [Replicate(), Shard(0)]),
        (square, [Shard(0), Shard(1)]),
        (line, [Shard(0)]),
        (line, [Replicate()]),
        None,
    ]
    alone, spread = [], []
    for layout in layouts:
        weight, grad = torch.zeros(5, 6), torch.randn(5, 6, generator=generator)
        alone.append(nn.Parameter(weight.clone()))
        alone[-1].grad = grad * 0.5

        def place(tensor: Tensor, layout: Any = layout) -> Tensor:
            return tensor.clone() if layout is None else distribute_tensor(tensor, *layout)

        spread.append(nn.Parameter(place(weight)))
        spread[-1].grad = place(grad)
    expected = torch.nn.utils.clip_grad_norm_(alone, float("inf") if limit is None else limit)
    found = scale_and_clip(spread, 0.5, limit)
    assert found == pytest.approx(float(expected), rel=1e-6)
    assert scale_and_clip([], 0.5, limit) == 0.0
    for one, parts in zip(alone, spread, strict=True):
        assert one.grad is not None and parts.grad is not None
        torch.testing.assert_close(whole(parts.grad), one.grad, rtol=1e-6, atol=1e-7)
    sharded = spread[4].grad
    assert sharded is not None
    if rank == 0:
        local(sharded).fill_(float("nan"))
    assert not np.isfinite(scale_and_clip(spread, 1.0, limit))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [None, 1.0, 100.0])
def test_the_norm_of_mixed_parameters(tmp_path: Path, limit: float | None) -> None:
    run_world(4, clipped, tmp_path, limit)


def averaged(rank: int) -> list[list[float]]:
    sizes = (3, BUCKET_BYTES // 4 + 1, 1, 2)  # one does not fit into a bucket with others
    parameters = [nn.Parameter(torch.zeros(size)) for size in sizes]
    parameters.append(nn.Parameter(torch.zeros(2, dtype=torch.bfloat16)))
    for number, parameter in enumerate(parameters):
        if number != rank:  # of the others each process lacks one
            parameter.grad = torch.full_like(parameter, 2.0**rank)
    average_gradients(parameters, dist.group.WORLD)
    return [[float(p.grad.min()), float(p.grad.max())] for p in parameters if p.grad is not None]


@pytest.mark.slow
def test_gradients_are_averaged_over_the_processes(tmp_path: Path) -> None:
    expected = [[1.0, 1.0], [0.5, 0.5], [1.5, 1.5], [1.5, 1.5], [1.5, 1.5]]
    assert run_world(2, averaged, tmp_path) == [expected, expected]
