"""The global order of the sequences that a run trains on, as its processes took them: the same for every number of
processes and loader workers, every micro-batch, and wherever the run was killed and resumed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retro.data.order import SampleStream, sample_hash
from retro.data.question_dataset import open_question_sequences
from tests.eval.workspace import CHUNK, Workspace, workspace
from tests.train import releases
from tests.train.ranks import Death, consumed, run_ranks

__all__ = ["workspace"]

GLOBAL_BATCH, STEPS, SEED = 12, 14, 3


@dataclass(frozen=True)
class Session:
    """Some processes of a run, of which one may die."""

    world: int
    death: Death | None = None
    fields: tuple[tuple[str, Any], ...] = ()


class Run:
    """A run in sessions, and what its processes noted."""

    def __init__(self, release: Path, root: Path, **fields: Any) -> None:
        self.folder, self.record, self.log = root / "run", root / "record", root / "log.txt"
        self.file = root / "run.yaml"
        common = {"global_batch": GLOBAL_BATCH, "steps": STEPS, "seed": SEED, "log_every": 1, "checkpoint_every": 3}
        # Order, not arithmetic: a model of no size.
        self.values = releases.settings(release, root, **{**common, "validate_every": 0, **fields})

    def session(self, session: Session) -> None:
        values = {**self.values, **dict(session.fields)}
        releases.write_yaml(self.file, values)
        codes = run_ranks(self.file, session.world, self.log, record=self.record, death=session.death)
        text = self.log.read_text()
        if session.death is None:
            assert codes == [0] * session.world, text
        else:
            assert codes[session.death.rank] == -9, text

    def expected(self, num_samples: int) -> np.ndarray:
        return SampleStream(num_samples, SEED).take(0, STEPS * GLOBAL_BATCH)


def check(run: Run, sessions: list[Session], repeated: bool | None = None) -> None:
    """All sessions one after the other: what was consumed is the stream of the seed, to the last sequence."""
    for session in sessions:
        run.session(session)
    ids, again = consumed(run.record)
    num_samples = int(ids.max()) + 1
    assert len(ids) > 2 * num_samples, "expected several epochs"
    expected = run.expected(num_samples)
    assert np.array_equal(ids, expected)
    rows = releases.metrics(run.folder, "train")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert row["sample_hash"] == f"{sample_hash(0, expected[: row['samples']]):016x}"
    if repeated is not None:
        assert bool(again) == repeated


def test_a_rank_dies_and_another_number_of_processes_goes_on(release: Path, tmp_path: Path):
    # Two micro-batches per process and step; the death comes between them.
    first = Session(2, Death(rank=1, step=7, micro_batch=1), (("micro_batch", 3),))
    check(Run(release, tmp_path), [first, Session(1)], repeated=True)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["chunks", "documents", "gpt"])
def test_the_order_is_that_of_the_seed_for_any_number_of_processes(release: Path, tmp_path: Path, layout: str):
    fields: dict[str, Any] = {"packing": "chunks" if layout == "gpt" else layout, "retro": layout != "gpt"}
    for number, (world, micro_batch, workers) in enumerate(
        [(1, None, 0), (1, 4, 1), (2, None, 2), (2, 1, 0), (3, 2, 0), (3, 4, 1), (4, None, 0), (4, 1, 0)]
    ):
        root = tmp_path / str(number)
        root.mkdir()
        own = {**fields, "micro_batch": micro_batch, "loader_workers": workers}
        check(Run(release, root, **own), [Session(world)], repeated=False)


@pytest.mark.slow
def test_questions_come_in_the_order_of_the_seed(workspace: Workspace, tmp_path: Path):
    run = Run(workspace.release.path, tmp_path, dataset="questions", steps=16)
    run.values["model"]["chunk_length"] = CHUNK
    sequences = open_question_sequences(workspace.release.questions["docs"], "train")
    run.values["sequence_length"] = sequences.sequence_length
    run.session(Session(3, Death(rank=2, step=8)))
    run.session(Session(2, fields=(("micro_batch", 3),)))
    ids, _ = consumed(run.record)
    assert np.array_equal(ids, SampleStream(len(sequences), SEED).take(0, 16 * GLOBAL_BATCH))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_again_and_again_and_resumed_by_any_number_of_processes(release: Path, tmp_path: Path, seed: int):
    generator = np.random.default_rng(seed)
    run = Run(release, tmp_path, packing="documents" if seed % 2 else "chunks", async_checkpoints=seed < 2)
    sessions, lowest = [], 0
    while lowest < STEPS - 1:
        world = int(generator.choice([1, 2, 3, 4]))
        share = GLOBAL_BATCH // world
        micro_batch = int(generator.choice([n for n in range(1, share + 1) if share % n == 0]))
        step = int(generator.integers(lowest, STEPS))
        death = Death(int(generator.integers(world)), step, int(generator.integers(share // micro_batch)))
        fields = (("micro_batch", micro_batch), ("checkpoint_every", int(generator.integers(1, 4))))
        sessions.append(Session(world, death, fields))
        lowest = max(lowest + 1, step)
    check(run, [*sessions, Session(2)])


@pytest.mark.slow
def test_a_world_that_does_not_divide_the_batch_says_which_would_and_one_of_them_goes_on(release: Path, tmp_path: Path):
    run = Run(release, tmp_path, global_batch=8)
    run.session(Session(4, Death(rank=0, step=7)))
    codes = run_ranks(run.file, 3, run.log)
    assert 2 in codes
    assert "error: global_batch: expected a multiple of the number of processes 3, found 8; use 1, 2, 4 or 8" in (
        run.log.read_text()
    )
    run.session(Session(2))
    ids, _ = consumed(run.record)
    assert np.array_equal(ids, SampleStream(int(ids.max()) + 1, SEED).take(0, STEPS * 8))
