"""A run over two hosts, of which one is lost and comes back: the same sequences in the same order, and with the same
number of hosts the same weights, bit for bit.

The hosts are network namespaces with host names that resolve nowhere (tests/system/hosts.py), started by
`retro launch`; the file system is one, as on a cluster.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retro.artifacts.checkpoint_folders import list_checkpoints
from retro.artifacts.fingerprint import sha256_file
from retro.data.order import SampleStream, sample_hash
from tests.system.hosts import Host, Hosts, wait_until, why_not
from tests.system.workplace import ROOT
from tests.train import releases

pytestmark = pytest.mark.slow
STEPS, GLOBAL_BATCH, SEED = 300, 4, 11


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with Hosts(2) as found:
        yield found


class Run:
    """One run, started on each host by the same command."""

    def __init__(self, hosts: list[Host], release: Path, root: Path, name: str, nodes: str = "2", **fields: Any):
        self.hosts, self.root, self.name, self.nodes = hosts, root, name, nodes
        self.folder = root / name
        common = {"steps": STEPS, "global_batch": GLOBAL_BATCH, "seed": SEED, "log_every": 1, "checkpoint_every": 10}
        # Dropout makes the generators of both processes matter.
        values = releases.settings(release, root, name=name, **{**common, "validate_every": 0, **fields})
        values["model"]["dropout"] = 0.1
        self.steps = values["steps"]
        self.file = releases.write_yaml(root / f"{name}.yaml", values)
        self.agents: list[subprocess.Popen[bytes]] = []
        self.port = 29400 + len(list(root.glob("*.yaml")))  # what an earlier run left in TIME_WAIT does not matter

    def start(self, number: int) -> None:
        """Start, or start again, on one host."""
        host = self.hosts[number]
        meeting = [
            f"rendezvous.endpoint={self.hosts[0].address}:{self.port}",
            f"rendezvous.node_rank={number}",
            f"rendezvous.address={host.address}",
            "rendezvous.interface=eth0",
        ]
        options = [f"nodes={self.nodes}", "processes=1", "threads_per_process=1", "max_restarts=2"]
        command = [sys.executable, "-m", "launch", str(ROOT / "configs/launch/local.yaml"), *options, *meeting]
        environment = releases.environment(PYTHONPATH=str(ROOT))
        agent = host.start([*command, "--", "retro", "train", str(self.file)], self.log(number), environment)
        self.agents[number:] = [agent, *self.agents[number + 1 :]]

    def log(self, number: int) -> Path:
        return self.root / f"{self.name}-{number}.log"

    def logs(self) -> str:
        return "".join(f"--- host {n}\n{self.log(n).read_text()}" for n in range(len(self.agents)))

    def step(self) -> int:
        """The last step that metrics.jsonl tells of; 0 = none."""
        path = self.folder / "metrics.jsonl"
        steps = re.findall(r'"step": (\d+),', path.read_text()) if path.is_file() else []
        return int(steps[-1]) if steps else 0

    def wait_for_step(self, step: int) -> None:
        try:
            wait_until(lambda: self.step() >= step or self.agents[0].poll() is not None, f"step {step}")
            assert self.step() >= step
        except AssertionError:
            raise AssertionError(f"step {self.step()}, expected {step}\n{self.logs()}") from None

    def finish(self) -> None:
        """Wait for the end on both hosts, and check what must hold of every run."""
        try:
            codes = [agent.wait(timeout=150) for agent in self.agents]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end\n{self.logs()}") from None
        assert codes == [0, 0], self.logs()
        rows = releases.metrics(self.folder, "train")
        assert [row["step"] for row in rows] == list(range(1, self.steps + 1))
        found = re.search(r"(\d+) sequences of release", self.logs())
        assert found is not None
        order = SampleStream(int(found[1]), SEED).take(0, self.steps * GLOBAL_BATCH)
        for row in rows:
            assert row["sample_hash"] == f"{sample_hash(0, order[: row['samples']]):016x}"
        assert not [path for path in self.folder.rglob("*") if ".tmp-" in path.name]

    def weights(self) -> list[str]:
        step, folder = list_checkpoints(self.folder / "checkpoints")[-1]
        assert step == self.steps
        return [sha256_file(folder / f"{stem}.safetensors") for stem in ("model", "optimizer")]

    def worlds(self) -> list[int]:
        """Number of processes of each session of the run."""
        return [int(world) for world in re.findall(r"on (\d+) process\(es\)", (self.folder / "log.txt").read_text())]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(release, folder of the runs)"""
    root = tmp_path_factory.mktemp("two-hosts")
    (root / "release").mkdir()
    return releases.build_release(root / "release"), root


@pytest.fixture(scope="module")
def undisturbed(hosts: list[Host], place: tuple[Path, Path]) -> Run:
    run = Run(hosts, *place, "undisturbed")
    run.start(0)
    run.start(1)
    run.finish()
    assert run.worlds() == [2]
    return run


@pytest.mark.parametrize("how", ["killed", "power"])
def test_a_host_is_lost_and_comes_back(hosts: list[Host], place: tuple[Path, Path], undisturbed: Run, how: str):
    run = Run(hosts, *place, how)
    run.start(0)
    run.start(1)
    run.wait_for_step(40)
    if how == "killed":
        hosts[1].kill()
    else:
        hosts[1].lose_power()
    # What a process that was killed while it wrote leaves behind.
    leftover = run.folder / "checkpoints" / ".step_000999.tmp-0123abcd"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    hosts[1].connect()
    run.start(1)
    run.finish()
    assert run.agents[0].returncode == 0
    assert run.worlds() == [2, 2]
    assert run.weights() == undisturbed.weights()


def test_the_host_of_the_meeting_place_is_lost_and_the_command_is_given_again(
    hosts: list[Host], place: tuple[Path, Path], undisturbed: Run
):
    run = Run(hosts, *place, "first")
    run.start(0)
    run.start(1)
    run.wait_for_step(40)
    hosts[0].kill()
    # Without the meeting place the other agent cannot go on; a batch system would start the job again.
    assert run.agents[1].wait(timeout=120) not in (0, 75), run.logs()
    run.start(1)  # in any order
    run.start(0)
    run.finish()
    assert run.worlds() == [2, 2]
    assert run.weights() == undisturbed.weights()


def test_an_agent_dies_and_its_process_lives_on(hosts: list[Host], place: tuple[Path, Path], undisturbed: Run):
    run = Run(hosts, *place, "orphan")
    run.start(0)
    run.start(1)
    run.wait_for_step(40)
    os.kill(run.agents[1].pid, signal.SIGKILL)
    run.start(1)
    run.finish()
    assert run.weights() == undisturbed.weights()


def test_the_survivor_goes_on_alone_until_the_other_is_back(
    hosts: list[Host], place: tuple[Path, Path], undisturbed: Run
):
    run = Run(hosts, *place, "elastic", nodes="1-2", steps=1000, checkpoint_every=50, decay_steps=STEPS)
    run.start(0)
    run.start(1)
    run.wait_for_step(60)
    hosts[1].kill()
    lost = run.step()
    run.wait_for_step(lost + 20)
    run.start(1)
    run.finish()
    worlds = run.worlds()
    assert worlds == [2, 1, 2], run.logs()
    # The survivor was asked to stop for the new one: nothing that it did was lost.
    assert "stopped by SIGTERM after step" in (run.folder / "log.txt").read_text()
    assert run.step() == 1000


def test_the_order_is_that_of_one_process(place: tuple[Path, Path], undisturbed: Run):
    from retro.train.run import train

    release, root = place
    changes = {"steps": STEPS, "global_batch": GLOBAL_BATCH, "seed": SEED, "log_every": 1, "checkpoint_every": 0}
    alone = train(releases.config(release, root, name="alone", **{**changes, "validate_every": 0})).folder
    one, two = (releases.metrics(folder, "train") for folder in (alone, undisturbed.folder))
    assert [row["sample_hash"] for row in one] == [row["sample_hash"] for row in two]
    assert np.isfinite([row["loss"] for row in two]).all()
