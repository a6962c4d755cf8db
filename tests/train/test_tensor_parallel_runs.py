"""Runs with tensor parallelism, alone, with replicas and with FSDP: the curve of one process, checkpoints for all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from retro.artifacts.checkpoint_folders import list_checkpoints
from retro.config.errors import ConfigError
from retro.config.loader import from_dict
from retro.config.train import TrainConfig
from retro.model.shards import row_orders
from retro.model.tensor_files import open_tensor_files
from tests.train import releases
from tests.train.curves import join, parity_settings, train_compiled, train_curves, whole
from tests.train.test_parallel import ALL_PARTS, Job, compare, run
from tests.train.worlds import run_world

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (2, {"tensor": 2}),
    "ddp": (4, {"tensor": 2}),
    "fsdp": (4, {"tensor": 2, "strategy": "fsdp"}),
    "four": (4, {"tensor": 4}),
}
ENCODER = {"num_layers": 1, "num_heads": 4, "ffn_width": 20}
#: Grouped heads, biases, scales of heads and smeared keys: everything whose rows or gradients tensor parallelism moves.
FULL = {"num_heads": 8, "head_width": 4, "num_kv_heads": 4, "encoder": ENCODER, "qk_norm": True, "smear_keys": True}
MODES: dict[str, Job] = {
    "full": ({"model": {**FULL, "bias": True}}, ""),
    "gelu, untied": ({"model": {**FULL, "ffn": "gelu", "tie_embeddings": False, "norm": "layernorm"}}, ""),
    "gpt": ({"retro": False, "model": {"num_heads": 4}}, ""),
    "checkpointed": ({"model": FULL, "activation_checkpointing": ALL_PARTS}, ""),
    "packed": ({"model": FULL, "packing": "documents"}, ""),
    "some without neighbors": ({"model": FULL}, "some"),
    "all without neighbors": ({"model": FULL}, "all"),
    "learned gates": ({"model": {**FULL, "gate": {"kind": "learned", "value": 0.5}}}, ""),
    "backbone frozen": ({"model": FULL, "freeze_backbone": True}, ""),
    "mimetic": ({"model": {**FULL, "attention_init": "mimetic", "embedding_norm": True}}, ""),
}
# As in test_parallel: relative differences of losses and norms, absolute ones of weights, after 6 steps of rate 0.01.
# Sums over heads and hidden units are made in another order. Where a gradient is nearly 0 Adam shows that.
FLOAT32 = {"losses": 1e-6, "norms": 3e-5, "validations": 1e-6, "weights": 5e-4}
#: Shares of a sum are rounded to bfloat16 before they are added: another rounding, of the size that bfloat16 has.
BFLOAT16 = {"losses": 6e-4, "norms": 2e-2, "validations": 6e-4, "weights": 4e-2}
#: Muon rounds to bfloat16 what it makes orthogonal, so a last bit of a gradient moves a weight by 0.4 % of an update.
MUON = {"losses": 1e-5, "norms": 1e-3, "validations": 1e-5, "weights": 1e-3}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_trains_what_one_process_trains(release: Path, tmp_path: Path, name: str) -> None:
    world, parallel = LAYOUTS[name]
    rounded: dict[str, Job] = {"bf16": ({"model": FULL, "precision": "bf16"}, "")}
    muon: dict[str, Job] = {"muon": ({"model": {**FULL, "bias": True}, "optimizer": "muon"}, "")}
    drawn: dict[str, Job] = {
        "dropout": ({"model": {**FULL, "dropout": 0.2, "encoder": {**ENCODER, "dropout": 0.2}}}, "")
    }
    jobs = {**MODES, **rounded, **muon}
    # With dropout the processes of a group must agree, as `run` checks; one process draws other numbers.
    found = run(world, tmp_path, release, {**jobs, **drawn}, parallel)
    expected = run(1, tmp_path, release, jobs, {})
    compare({mode: found[mode] for mode in MODES}, expected, FLOAT32)
    compare({"bf16": found["bf16"]}, expected, BFLOAT16)
    compare({"muon": found["muon"]}, expected, MUON)
    full = found["full"]
    shared = sum(weights.size for key, weights in full.weights.items() if is_shared(key))
    rest = sum(weights.size for weights in full.weights.values()) - shared
    if parallel.get("strategy") != "fsdp":
        assert full.held == shared // parallel["tensor"] + rest


def is_shared(name: str) -> bool:
    layer = name.split(".")[-2]
    if layer in ("query_key_value", "query", "key_value", "up", "smear"):
        return True
    return layer in ("out", "down") and name.endswith(".weight")


@pytest.mark.slow
def test_it_is_compiled(release: Path, tmp_path: Path) -> None:
    changes = {"model": {**FULL, "bias": True}}
    one = run(1, tmp_path, release, {"compiled": (changes, "")}, {})
    settings = parity_settings(release, parallel={"tensor": 2}, compile=True, **changes)
    curves = run_world(2, train_compiled, tmp_path, 2, settings, timeout=170)
    assert (curves[0].losses, curves[0].norms) == (curves[1].losses, curves[1].norms)
    compare({"compiled": curves[0]}, one, {**FLOAT32, "losses": 3e-6, "validations": 3e-6})


@pytest.mark.slow
def test_muon_over_shards(release: Path, tmp_path: Path) -> None:
    jobs: dict[str, Job] = {"muon": ({"model": FULL, "optimizer": "muon"}, "")}
    one = run(1, tmp_path, release, jobs, {})
    for number, parallel in enumerate(({}, {"strategy": "fsdp"})):
        compare(run(2, tmp_path / str(number), release, jobs, parallel), one, MUON)
    compare(run(4, tmp_path / "hybrid", release, jobs, {"strategy": "fsdp", "shard": 2}), one, MUON)


def trained(rank: int, world: int, values: dict[str, Any]) -> int:
    from retro.train.run import train

    if world > 1:
        join(rank, world)
    return train(from_dict(TrainConfig, values)).state.step


def train_in(world: int, folder: Path, values: dict[str, Any], **changes: Any) -> None:
    values = {**values, **changes}
    steps = [trained(0, 1, values)] if world == 1 else run_world(world, trained, folder, world, values, timeout=120)
    assert steps == [6] * world


def tensors(run_folder: Path, step: int) -> dict[str, Tensor]:
    folder = run_folder / "checkpoints" / f"step_{step:06d}"
    sets = {stem: open_tensor_files(folder, stem) for stem in ("model", "optimizer")}
    return {f"{stem}/{name}": files.read(name) for stem, files in sets.items() for name in files.names}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_checkpoints_do_not_show_how_a_run_was_laid_out(release: Path, tmp_path: Path, optimizer: str) -> None:
    """Saved by tensor parallelism with FSDP, resumed by one process, and the other way round; a run starts from its
    weights."""
    common = {"steps": 6, "log_every": 1, "checkpoint_every": 3, "keep_checkpoints": 5, "validate_every": 3}
    values = {**releases.settings(release, tmp_path, **common), "micro_batch": 1, "optimizer": optimizer}
    values["model"].update(FULL, bias=True)
    both = {"tensor": 2, "strategy": "fsdp"}
    train_in(1, tmp_path, values, name="one")
    train_in(4, tmp_path, values, name="many", parallel=both)
    expected = {step: tensors(tmp_path / "one", step) for step in (3, 6)}

    def check(run_folder: Path) -> None:
        for step, whole_tensors in expected.items():
            found = tensors(run_folder, step)
            assert found.keys() == whole_tensors.keys()
            for name, tensor in whole_tensors.items():
                np.testing.assert_allclose(found[name], tensor, rtol=0, atol=1e-3, err_msg=name)

    check(tmp_path / "many")
    for name, world, parallel in (
        ("one", 4, both),
        ("many", 1, {}),
        ("one", 2, {"tensor": 2}),
        ("many", 4, {"tensor": 2}),
    ):
        folder = tmp_path / name / "checkpoints"
        shutil.rmtree(list_checkpoints(folder)[-1][1])
        train_in(world, tmp_path, values, name=name, parallel=parallel)
        assert [step for step, _ in list_checkpoints(folder)] == [3, 6]
        check(tmp_path / name)
    del values["model"]
    losses = {}
    for name, world, parallel in (("from-1", 1, {}), ("from-4", 4, both)):
        train_in(world, tmp_path, values, name=name, parallel=parallel, init_from=str(tmp_path / "many"))
        losses[name] = [row["loss"] for row in releases.metrics(tmp_path / name, "train")]
    assert losses["from-4"] == pytest.approx(losses["from-1"], rel=1e-4)


def kept(rank: int, world: int, config: Any, folder: str) -> None:
    """What is saved of fused layers is the model's rows, and what is loaded goes back where it was."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from retro.optim.muon import build_muon
    from retro.train.checkpointing.staging import view
    from retro.train.checkpointing.storage import LoadPlans, SavePlans, TensorSetReader, TensorSetWriter
    from retro.train.parallel.row_pieces import RowPieces
    from retro.train.parallel.state import fill_optimizer_state, named_model_state, named_optimizer_state
    from retro.train.parallel.tensor_parallel import apply_tensor_parallel
    from tests.model.builders import scrambled

    expected = scrambled(config, dtype=torch.float32).state_dict()
    models = [scrambled(config, seed, torch.float32) for seed in (0, 1)]
    mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("shard", "tensor"))
    optimizers = []
    for model in models:
        apply_tensor_parallel(model, mesh["tensor"])
        if world > 2:
            for layer in model.layers:
                fully_shard(layer, mesh=mesh["shard"])
            fully_shard(model, mesh=mesh["shard"])
        optimizer = build_muon(model, learning_rate=0.0, weight_decay=0.0, betas=(0.9, 0.9), eps=1e-8)
        for parameter in model.parameters():
            parameter.grad = parameter.detach().clone()  # what every state is a multiple of
        optimizer.step()
        optimizers.append(optimizer)
    saved = named_model_state(models[0])
    assert list(saved) == list(expected)
    assert any(isinstance(value, RowPieces) for value in saved.values())
    assert all(value.shape == expected[name].shape for name, value in saved.items())
    states = [named_optimizer_state(m, o) for m, o in zip(models, optimizers, strict=True)]
    stored = {f"model/{name}": value for name, value in {**saved, **states[0]}.items()}
    dcp.save(view(stored), storage_writer=TensorSetWriter(Path(folder), rank, ("model",)), planner=SavePlans())
    files = open_tensor_files(folder, "model")
    for name, tensor in expected.items():
        assert torch.equal(files.read(name), tensor), name
        momentum = f"{name}.momentum_buffer"
        if momentum in files.names:
            torch.testing.assert_close(files.read(momentum), 0.05 * tensor)
    assert f"{next(name for name in expected if '.up.' in name)}.momentum_buffer" in files.names
    wanted = {f"model/{name}": value for name, value in {**named_model_state(models[1]), **states[1]}.items()}
    dcp.load(wanted, storage_reader=TensorSetReader({"model": files}), planner=LoadPlans())
    fill_optimizer_state(models[1], optimizers[1], states[1])
    orders = row_orders(models[1])
    for name, tensor in models[1].state_dict().items():
        assert torch.equal(whole(tensor, orders.get(name)), expected[name]), name
    for first, second in zip(models[0].parameters(), models[1].parameters(), strict=True):
        for key, value in optimizers[0].state[first].items():
            assert torch.equal(whole(value), whole(optimizers[1].state[second][key]))


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_pieces_of_fused_layers(tmp_path: Path, world: int) -> None:
    from tests.model.builders import tiny

    (tmp_path / "set").mkdir()
    # 18 rows of the gate for 2 processes of a tensor group, each cut by 2: not even.
    config = tiny(
        num_heads=8, head_width=3, num_kv_heads=2, ffn_width=18, encoder_num_heads=4, smear_keys=True, bias=True
    )
    run_world(world, kept, tmp_path, world, config, str(tmp_path / "set"))


def refused(rank: int, world: int, settings: dict[str, Any]) -> str:
    join(rank, world)
    with pytest.raises(ConfigError) as error:
        train_curves(rank, world, [(settings, "")])
    return str(error.value)


@pytest.mark.slow
def test_a_model_that_does_not_divide_is_refused_before_training(release: Path, tmp_path: Path) -> None:
    settings = releases.settings(release, tmp_path, parallel={"tensor": 2})
    settings["model"]["num_heads"] = 1
    for message in run_world(2, refused, tmp_path, 2, settings):
        assert message.startswith("parallel.tensor: expected a divisor of the model's 1 attention heads")
