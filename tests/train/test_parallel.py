"""Every layout of processes trains what one process trains; sharded models are gathered and exchanged no more than
needed.

All trainings of so many processes run in one group of them, started once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retro.config.errors import ConfigError
from retro.config.parallel import ParallelConfig
from retro.train.parallel.mesh import Layout, lay_out
from tests.train.curves import Curve, parity_settings, train_compiled, train_curve, train_curves
from tests.train.worlds import run_world

FSDP = {"strategy": "fsdp"}
HYBRID = {"strategy": "fsdp", "shard": 2}
ALL_PARTS = ["decoder", "cross_attention", "encoder"]
#: Sums are then made in the same order by one process and by two: a + b.
ONE_EACH = {"global_batch": 2, "gradient_clip": None}
# Relative differences of losses and gradient norms, and absolute ones of weights after 6 steps of rate 0.01.
FLOAT32 = {"losses": 1e-6, "norms": 2e-6, "validations": 1e-6, "weights": 1e-5}
BFLOAT16 = {"losses": 1e-4, "norms": 2e-3, "validations": 1e-4, "weights": 2e-3}
REDUCED_IN_BFLOAT16 = {"losses": 1e-3, "norms": 2e-2, "validations": 1e-3, "weights": 2e-2}

Job = tuple[dict[str, Any], str]  # changes of settings, sequences without neighbors
MODES: dict[str, Job] = {
    "plain": ({}, ""),
    "gpt": ({"retro": False}, ""),
    "bf16": ({"precision": "bf16"}, ""),
    "accumulated": ({"global_batch": 8}, ""),
    "checkpointed": ({"activation_checkpointing": ALL_PARTS}, ""),
    "some without neighbors": ({}, "some"),
    "all without neighbors": ({}, "all"),
    "learned gates": ({"model": {"gate": {"kind": "learned", "value": 0.5}, "cross_attention_layers": [1, 2]}}, ""),
    "one layer off": ({"model": {"gate": {"value": [0.0, 1.0]}, "cross_attention_layers": [1, 2]}}, ""),
    "all layers off": ({"model": {"gate": {"value": 0.0}}}, ""),
    "packed": ({"packing": "documents"}, ""),
    "untied": ({"model": {"tie_embeddings": False}}, ""),
    "backbone frozen": ({"freeze_backbone": True}, ""),
    # Rows that no number of processes divides, fewer rows than processes, another width of the encoder.
    "odd sizes": (
        {
            "model": {
                "ffn_width": 3,
                "ffn": "gelu",
                "bias": True,
                "encoder": {"num_layers": 2, "width": 10, "num_heads": 5},
            }
        },
        "",
    ),
}


def run(world: int, folder: Path, release: Path, jobs: dict[str, Job], parallel: dict[str, Any]) -> dict[str, Curve]:
    """The curves of the main process of `world`, after checking that all processes have the same."""
    settings = [(parity_settings(release, parallel=parallel, **changes), which) for changes, which in jobs.values()]
    if world == 1:
        return dict(zip(jobs, [train_curve(*job) for job in settings], strict=True))
    curves = run_world(world, train_curves, folder, world, settings, timeout=170)
    for others in curves[1:]:
        for name, curve, other in zip(jobs, curves[0], others, strict=True):
            assert (curve.losses, curve.norms) == (other.losses, other.norms), name
            assert all(np.array_equal(curve.weights[key], other.weights[key]) for key in curve.weights), name
    return dict(zip(jobs, curves[0], strict=True))


def compare(found: dict[str, Curve], expected: dict[str, Curve], tolerance: dict[str, float] | None = None) -> None:
    for name, curve in found.items():
        allowed = tolerance or (BFLOAT16 if name == "bf16" else FLOAT32)
        for what in ("losses", "norms", "validations"):
            values = getattr(expected[name], what)
            assert len(values) >= 1
            assert getattr(curve, what) == pytest.approx(values, rel=allowed[what]), (name, what)
        assert curve.weights.keys() == expected[name].weights.keys()
        for key, weights in expected[name].weights.items():
            np.testing.assert_allclose(curve.weights[key], weights, rtol=0, atol=allowed["weights"], err_msg=name)


def equal_weights(a: Curve, b: Curve) -> bool:
    return a.losses == b.losses and all(np.array_equal(a.weights[key], b.weights[key]) for key in a.weights)


def test_two_sharded_processes_train_what_one_trains(release: Path, tmp_path: Path) -> None:
    """Bit for bit where sums are made in the same order and nothing is clipped."""
    names = ("plain", "bf16", "some without neighbors")
    loose = {name: MODES[name] for name in names}
    exact: dict[str, Job] = {
        "one each": (ONE_EACH, ""),
        "one each, bf16": ({**ONE_EACH, "precision": "bf16"}, ""),
        "one each, checkpointed": ({**ONE_EACH, "activation_checkpointing": ALL_PARTS}, ""),
    }
    one = run(1, tmp_path, release, {**loose, **exact}, {})
    two = run(2, tmp_path, release, {**loose, **exact}, FSDP)
    compare({name: two[name] for name in names}, one)
    for name in exact:
        assert equal_weights(two[name], one[name]), name
        assert two[name].norms == pytest.approx(one[name].norms, rel=1e-6)
    assert two["plain"].collectives["_reduce_scatter_base_"] == 4  # one per unit, for two micro-batches
    # Each process holds half of every matrix, and all vectors.
    matrices = sum(w.size for w in two["plain"].weights.values() if w.ndim > 1)
    vectors = sum(w.size for w in two["plain"].weights.values() if w.ndim < 2)
    assert two["plain"].held == matrices // 2 + vectors


@pytest.mark.slow
def test_two_processes_in_every_mode(release: Path, tmp_path: Path) -> None:
    one = run(1, tmp_path, release, MODES, {})
    copies = run(2, tmp_path / "ddp", release, MODES, {})
    shards = run(2, tmp_path / "fsdp", release, MODES, FSDP)
    compare(copies, one)
    compare(shards, one)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [FSDP, HYBRID], ids=["fsdp", "hybrid"])
def test_four_processes_in_every_mode(release: Path, tmp_path: Path, parallel: dict[str, Any]) -> None:
    """Of the 3 sequences of the validation one process has none."""
    compare(run(4, tmp_path, release, MODES, parallel), run(1, tmp_path, release, MODES, {}))


@pytest.mark.slow
def test_three_processes(release: Path, tmp_path: Path) -> None:
    jobs = {"odd sizes": MODES["odd sizes"], "plain": MODES["plain"]}
    jobs = {name: ({**changes, "global_batch": 6}, which) for name, (changes, which) in jobs.items()}
    compare(run(3, tmp_path, release, jobs, FSDP), run(1, tmp_path, release, jobs, {}))


@pytest.mark.slow
def test_sharding_computes_what_copies_compute(release: Path, tmp_path: Path) -> None:
    """Bit for bit, in bfloat16, with dropout and accumulated micro-batches too; gradients must not be clipped, because
    the norm is summed in another order."""
    jobs: dict[str, Job] = {
        name: ({"gradient_clip": None, **changes}, "")
        for name, changes in {
            "float32": {},
            "bf16": {"precision": "bf16"},
            "dropout": {"model": {"dropout": 0.1, "encoder": {"num_layers": 1, "dropout": 0.1}}},
        }.items()
    }
    copies = run(2, tmp_path / "ddp", release, jobs, {})
    for number, parallel in enumerate((FSDP, {**FSDP, "reshard_after_forward": False})):
        shards = run(2, tmp_path / str(number), release, jobs, parallel)
        for name in jobs:
            assert equal_weights(shards[name], copies[name]), name


@pytest.mark.slow
def test_exchange_in_bfloat16_or_with_every_micro_batch(release: Path, tmp_path: Path) -> None:
    names = ("plain", "bf16", "accumulated")
    jobs = {name: MODES[name] for name in names}
    one = run(1, tmp_path, release, jobs, {})
    compare(run(2, tmp_path / "a", release, jobs, {**FSDP, "reduce": "bf16"}), one, REDUCED_IN_BFLOAT16)
    compare(run(2, tmp_path / "b", release, jobs, {**FSDP, "exchange": "micro_batch"}), one)


@pytest.mark.slow
def test_gathers_and_exchanges_are_counted(release: Path, tmp_path: Path) -> None:
    """Units: the root, two decoder layers, one encoder layer. The root is gathered once per micro-batch, a layer twice;
    gradients are exchanged once per step, or the gradients and weights are kept."""
    jobs: dict[str, Job] = {str(n): ({"global_batch": 2 * n, "validate_every": 0}, "") for n in (1, 3)}
    cases = [
        (FSDP, 7, 21, 4, 4),
        ({**FSDP, "reshard_after_forward": False}, 4, 4, 4, 4),
        ({**FSDP, "exchange": "micro_batch"}, 7, 21, 4, 12),
    ]
    for number, (parallel, gathers, gathers_of_three, sums, sums_of_three) in enumerate(cases):
        curves = run(2, tmp_path / str(number), release, jobs, parallel)
        for name, gathered, summed in (("1", gathers, sums), ("3", gathers_of_three, sums_of_three)):
            counts = curves[name].collectives
            assert counts["_allgather_base_"] == gathered, (parallel, name)
            assert counts["_reduce_scatter_base_"] == summed, (parallel, name)
            assert counts["allreduce_"] == 2  # the gradients of all vectors, and the norm
    # Hybrid: each exchange also goes over the replicas, once per step.
    hybrid = run(4, tmp_path / "hybrid", release, {"3": ({"global_batch": 12, "validate_every": 0}, "")}, HYBRID)["3"]
    assert hybrid.collectives["_reduce_scatter_base_"] == 4
    assert hybrid.collectives["allreduce_"] == 4 + 2
    # DDP: one bucket, with the last of three micro-batches only.
    copies = run(2, tmp_path / "ddp", release, {"3": jobs["3"]}, {})["3"]
    assert copies.collectives["allreduce_"] == 1


@pytest.mark.slow
def test_sharded_layers_are_compiled_one_by_one(release: Path, tmp_path: Path) -> None:
    """The layer that has the neighbors encoded, one after it, and the encoder's; validation is not compiled again."""
    changes = {**ONE_EACH, "model": {"cross_attention_layers": [1, 2]}, "steps": 3}
    one = run(1, tmp_path, release, {"compiled": (changes, "")}, {})
    settings = parity_settings(release, parallel=FSDP, compile=True, activation_checkpointing=ALL_PARTS, **changes)
    curves = run_world(2, train_compiled, tmp_path, 2, settings, timeout=170)
    compare({"compiled": curves[0]}, one, FLOAT32)
    assert curves[0].losses == curves[1].losses


def test_layouts() -> None:
    assert lay_out(ParallelConfig(), 6) == Layout(6, 1, 1)
    assert lay_out(ParallelConfig(strategy="fsdp"), 6) == Layout(1, 6, 1)
    assert lay_out(ParallelConfig(strategy="fsdp", shard=2), 6) == Layout(3, 2, 1)
    assert lay_out(ParallelConfig(strategy="fsdp", tensor=2), 8) == Layout(1, 4, 2)
    assert lay_out(ParallelConfig(strategy="fsdp", shard=2, tensor=2), 8).data_world == 4
    assert lay_out(ParallelConfig(strategy="fsdp"), 1) == Layout(1, 1, 1)


@pytest.mark.parametrize(
    ("parallel", "world", "message"),
    [
        ({"tensor": 2}, 3, "parallel.tensor: expected a divisor of the number of processes, 3, found 2; start 4"),
        (
            {"strategy": "fsdp", "shard": 4},
            6,
            "parallel.shard: expected a divisor of the number of processes, 6 = 6, fou",
        ),
        ({"strategy": "fsdp", "shard": 4, "tensor": 2}, 4, "4 / tensor 2 = 2, found 4; start 8 processes"),
        ({"strategy": "fsdp", "shard": 1}, 2, "every process would hold all weights; set strategy=ddp"),
    ],
)
def test_layouts_that_cannot_be(parallel: dict[str, Any], world: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lay_out(ParallelConfig(**parallel), world)
    assert message in str(caught.value)
