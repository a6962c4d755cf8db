"""Sample order and the training loader: one stream, whatever the world size, the workers and the restarts."""

from __future__ import annotations

import hashlib
import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro.config.errors import ConfigError
from retro.data.dataset import RetroDataset
from retro.data.loader import TrainLoader, split_batch
from retro.data.order import HASH_MODULUS, SampleStream, sample_hash, sample_order
from tests.data.builders import PAD, TinyRelease, build_tiny_release

G = 12


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> TinyRelease:
    return build_tiny_release(tmp_path_factory.mktemp("tiny"), shards=2)


@pytest.fixture(scope="module")
def data(release: TinyRelease) -> RetroDataset:
    store, table = release.open()
    return RetroDataset(store, store, table, sequence_length=32, num_neighbors=2, pad_id=PAD)


def digest(batches: list) -> str:
    """Hash of all content of a list of batches, joined along the batch."""
    out = hashlib.sha256()
    for name in ("sample_ids_B", "tokens_BN", "targets_BN", "loss_mask_BN", "neighbors_BLKR", "neighbor_mask_BLKR"):
        out.update(np.concatenate([getattr(b, name) for b in batches]).tobytes())
    return out.hexdigest()


def global_batches(data: RetroDataset, steps: int, world: int = 1, start: int = 0, **options: int) -> list[list]:
    """The micro-batches of all ranks per step, ranks in order."""
    ranks = []
    for rank in range(world):
        loader = TrainLoader(
            data, global_batch=G, rank=rank, world=world, start_sample=start, **{"micro_batch": 2, "seed": 5, **options}
        )
        ranks.append(list(itertools.islice(loader, steps * loader.micro_batches_per_step)))
        assert loader.samples_consumed == start + steps * G
    per_step = len(ranks[0]) // steps
    return [[b for batches in ranks for b in batches[t * per_step : (t + 1) * per_step]] for t in range(steps)]


def test_order_is_a_pure_function_with_a_fixed_value() -> None:
    order = sample_order(10, seed=3, epoch=2)
    assert order.tolist() == [8, 2, 4, 1, 3, 6, 5, 0, 7, 9]
    assert sorted(order.tolist()) == list(range(10)) and order.dtype == np.int64
    others = [sample_order(10, 3, 3), sample_order(10, 4, 2), sample_order(10, 2, 3)]
    assert all(not np.array_equal(order, other) for other in others)


def test_stream_is_the_epochs_one_after_the_other() -> None:
    stream = SampleStream(7, seed=1)
    whole = np.concatenate([sample_order(7, 1, epoch) for epoch in range(5)])
    for start, stop in ((0, 35), (3, 3), (5, 9), (6, 30), (2, 4), (34, 35)):
        assert np.array_equal(stream.take(start, stop), whole[start:stop])


@pytest.mark.parametrize("window", [1, 2, 5, 64, 999, 1000, 1001])
def test_a_stream_that_is_sorted_piece_by_piece_is_the_same(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retro.data.order._BLOCK", 77)
    whole = np.concatenate([sample_order(1000, 4, epoch) for epoch in range(3)])
    stream = SampleStream(1000, seed=4, window=window)
    for start, stop in ((0, 30), (30, 31), (990, 1010), (2500, 3000), (3, 4), (0, 3000)):
        assert np.array_equal(stream.take(start, stop), whole[start:stop])


def test_the_stream_is_the_same_for_every_world_size_and_number_of_workers(data: RetroDataset) -> None:
    steps = 6  # several epochs
    assert steps * G > 2 * len(data)
    expected = [digest(step) for step in global_batches(data, steps)]
    ids = [b.sample_ids_B for step in global_batches(data, steps) for b in step]
    assert np.array_equal(np.concatenate(ids), SampleStream(len(data), 5).take(0, steps * G))
    for options in ({"world": 2}, {"world": 3}, {"micro_batch": 12}, {"micro_batch": 1, "world": 3}, {"prefetch": 7}):
        assert [digest(step) for step in global_batches(data, steps, **options)] == expected, options
    assert [digest(step) for step in global_batches(data, steps, seed=6)] != expected


def test_worker_processes_give_the_stream_of_the_thread(data: RetroDataset) -> None:
    expected = [digest(step) for step in global_batches(data, 3, start=G)]
    assert [digest(step) for step in global_batches(data, 3, start=G, num_workers=2)] == expected


@pytest.mark.parametrize("start", [1, 5, 12, 23, 24, 100])
def test_training_goes_on_from_any_sample(data: RetroDataset, start: int) -> None:
    batches = [b for step in global_batches(data, 2, world=2, start=start) for b in step]
    ids = np.concatenate([b.sample_ids_B for b in batches])
    assert np.array_equal(ids, SampleStream(len(data), 5).take(start, start + 2 * G))


def test_a_restart_in_the_middle_of_an_epoch_loses_and_repeats_nothing(data: RetroDataset) -> None:
    expected = [digest(step) for step in global_batches(data, 4)]
    first = TrainLoader(data, global_batch=G, micro_batch=4, seed=5)
    taken = list(itertools.islice(first, 3 + 1))  # one step, and a third of the next, which is lost with the process
    assert digest(taken[:3]) == expected[0]
    assert first.samples_consumed == G
    again = TrainLoader(data, global_batch=G, micro_batch=6, seed=5, start_sample=first.samples_consumed)
    assert [digest(list(itertools.islice(again, 2))) for _ in range(3)] == expected[1:]
    # The same loader iterated again goes on by itself, from the step that was not complete.
    assert digest(list(itertools.islice(first, 3))) == expected[1]


def test_gpt_and_retro_see_the_same_order(release: TinyRelease, data: RetroDataset) -> None:
    gpt = RetroDataset(data.queries, None, None, sequence_length=32, pad_id=PAD, retrieval="off")
    for a, b in zip(
        itertools.islice(TrainLoader(data, global_batch=4, micro_batch=2), 9),
        itertools.islice(TrainLoader(gpt, global_batch=4, micro_batch=2), 9),
        strict=True,
    ):
        assert np.array_equal(a.tokens_BN, b.tokens_BN) and np.array_equal(a.loss_mask_BN, b.loss_mask_BN)


def test_an_error_while_preparing_reaches_the_training_loop(data: RetroDataset) -> None:
    class Broken(RetroDataset):
        def __getitems__(self, samples: object) -> object:  # type: ignore[override]
            raise ValueError("disk on fire")

    broken = Broken(data.queries, None, None, sequence_length=32, retrieval="off")
    with pytest.raises(ValueError, match="disk on fire"):
        next(iter(TrainLoader(broken, global_batch=2, micro_batch=2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"global_batch": 10, "micro_batch": 4},
            "global_batch: expected a multiple of micro_batch 4 x 1 processes = 4",
        ),
        ({"global_batch": 8, "micro_batch": 4, "world": 3}, "micro_batch 4 x 3 processes = 12 sequences, found 8"),
        ({"global_batch": 0, "micro_batch": 1}, "global_batch: expected 1 or more"),
        ({"global_batch": 2, "micro_batch": 1, "world": 2, "rank": 2}, "rank: expected 0 to 1, found 2"),
        ({"global_batch": 2, "micro_batch": 1, "start_sample": -1}, "start_sample: expected 0 or more"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(data: RetroDataset, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainLoader(data, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((4, None, 3), "a multiple of the number of processes 3, found 4; use 1, 2 or 4 process(es), or for a new run"),
        ((4, None, 3), "global_batch=6"),
        ((1024, 4, 24), "= 96 sequences, found 1024; use 8, 16, 32 or 64 process(es), or for a new run"),
        ((8, 4, 4), "found 8; use 1 or 2 process(es), or micro_batch=1 or 2, or for a new run global_batch=16"),
        ((10, 4, 1), "= 4 sequences, found 10; use micro_batch=1, 2, 5 or 10, or for a new run global_batch=12"),
        ((7, 2, 3), "= 6 sequences, found 7; use for a new run global_batch=12"),
    ],
)
def test_the_error_names_sizes_that_would_do(sizes: tuple[int, int | None, int], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        split_batch(*sizes)


@given(st.integers(1, 200), st.none() | st.integers(1, 40), st.integers(1, 20))
def test_what_the_error_names_does(global_batch: int, micro_batch: int | None, world: int) -> None:
    try:
        size = split_batch(global_batch, micro_batch, world)
        assert global_batch % (size * world) == 0 and size == (micro_batch or global_batch // world)
        return
    except ConfigError as error:
        remedies = str(error).split("; use ")[1]
    for part in remedies.split(", or "):
        values = [int(value) for value in re.findall(r"\d+", part)]
        assert values
        for value in values:
            if "process(es)" in part:
                split_batch(global_batch, micro_batch, value)
            elif "global_batch" in part:
                assert value > global_batch
                split_batch(value, micro_batch, world)
            else:
                split_batch(global_batch, value, world)


def test_hash_of_a_stream_is_the_sum_over_its_parts_and_sees_every_change() -> None:
    samples = SampleStream(50, seed=1).take(0, 120)
    whole = sample_hash(0, samples)
    assert whole == 4531353078390745756  # in metrics.jsonl and checkpoints: the same for ever
    cut = sample_hash(70, samples[70:]) + sample_hash(0, samples[:33]) + sample_hash(33, samples[33:70])
    assert cut % HASH_MODULUS == whole
    exchanged = samples.copy()
    exchanged[[3, 4]] = exchanged[[4, 3]]
    others = [
        sample_hash(0, exchanged),
        sample_hash(0, samples[:-1]),
        sample_hash(1, samples),
        sample_hash(0, np.append(samples, samples[-1])),
        (whole + sample_hash(7, samples[7:8])) % HASH_MODULUS,
    ]
    assert len({whole, *others}) == 1 + len(others)


def test_hashes_of_the_ranks_add_up_to_that_of_the_stream(data: RetroDataset) -> None:
    for start, world, micro_batch, workers in ((0, 1, None, 0), (5, 2, 3, 0), (12, 3, None, 0), (12, 1, 2, 1)):
        total = 0
        for rank in range(world):
            loader = TrainLoader(
                data,
                global_batch=G,
                micro_batch=micro_batch,
                rank=rank,
                world=world,
                seed=5,
                start_sample=start,
                num_workers=workers,
            )
            batches = iter(loader)
            for _ in range(3):
                for _ in range(loader.micro_batches_per_step):
                    next(batches)
                total += loader.take_hash()
            next(batches)  # of a step that is not finished
            batches.close()  # type: ignore[attr-defined]
        expected = sample_hash(start, SampleStream(len(data), 5).take(start, start + 3 * G))
        assert total % HASH_MODULUS == expected


def test_a_step_that_was_begun_and_not_finished_is_not_in_the_hash(data: RetroDataset) -> None:
    loader = TrainLoader(data, global_batch=G, micro_batch=4, seed=5)
    list(itertools.islice(loader, 4))
    list(itertools.islice(loader, 3))
    assert loader.take_hash() == sample_hash(G, SampleStream(len(data), 5).take(G, 2 * G))


def test_workers_leave_signals_of_the_process_group_to_the_trainer() -> None:
    import signal
    import subprocess
    import sys

    # In a process of its own: the handlers of the test run stay as they are.
    code = (
        "import os, signal; from retro.data.loader import _leave_signals_to_the_trainer as f; f(0);"
        "os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGINT); print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "alive", (done.returncode, done.stderr, signal.SIGTERM)
