from __future__ import annotations

import pytest

from data_prep.execution.executor import Executor
from data_prep.execution.rank import resolve_rank
from retro.config.errors import ConfigError


def array(task: int, count: int, first: int, last: int) -> dict[str, str]:
    names = ("ID", "COUNT", "MIN", "MAX")
    return {f"SLURM_ARRAY_TASK_{n}": str(v) for n, v in zip(names, (task, count, first, last), strict=True)}


@pytest.mark.parametrize(
    ("rank", "world", "environment", "expected"),
    [
        (None, None, {}, (0, 1)),
        ("3", 8, {}, (3, 8)),
        ("auto", None, array(0, 4, 0, 3), (0, 4)),
        ("auto", None, array(7, 4, 4, 7), (3, 4)),
        ("auto", None, array(30, 4, 0, 30), (3, 4)),
        ("auto", None, array(5, 1, 5, 5), (0, 1)),
        ("auto", None, {"SLURM_NTASKS": "6", "SLURM_PROCID": "5"}, (5, 6)),
        # In an array, srun's one task is rank 0 of the task and not of the job.
        ("auto", None, {**array(2, 4, 0, 3), "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, (2, 4)),
    ],
)
def test_the_rank(rank, world, environment, expected):
    assert resolve_rank(rank, world, environment) == expected


@pytest.mark.parametrize("tasks", [[1, 2, 7], [0, 100, 101, 102]])
def test_an_irregular_array_has_ranks_within_bounds(tasks):
    for task in tasks:
        rank, world = resolve_rank("auto", None, array(task, len(tasks), min(tasks), max(tasks)))
        assert 0 <= rank < world == len(tasks)


@pytest.mark.parametrize(
    ("rank", "world", "environment", "message"),
    [
        ("auto", None, {}, "no Slurm job array"),
        ("auto", None, {"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_COUNT"),
        ("auto", 4, array(0, 4, 0, 3), "remove --world-size"),
        ("4", 4, {}, "below the world size 4, found 4"),
        ("-1", 4, {}, "found '-1'"),
        ("one", 4, {}, "found 'one'"),
        ("1", None, {}, "--world-size is missing"),
        (None, 4, {}, "--rank is missing"),
    ],
)
def test_what_is_no_rank(rank, world, environment, message):
    with pytest.raises(ConfigError, match=message):
        resolve_rank(rank, world, environment)


@pytest.mark.parametrize("world", [1, 2, 3, 7, 20])
def test_every_process_visits_every_shard_and_begins_with_others(world):
    orders = [Executor(1, rank=rank, world=world).order(17) for rank in range(world)]
    assert all(sorted(order) == list(range(17)) for order in orders)
    for rank, order in enumerate(orders):
        own = list(range(rank, 17, world))
        assert order[: len(own)] == own
    assert len({order[0] for order in orders}) == min(world, 17)


@pytest.mark.parametrize(("rank", "world"), [(-1, 2), (2, 2), (0, 0)])
def test_an_executor_of_no_rank(rank, world):
    with pytest.raises(ConfigError, match="rank"):
        Executor(1, rank=rank, world=world)
