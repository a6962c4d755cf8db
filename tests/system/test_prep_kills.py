"""`kill -9` at random moments of all stages, resumed each time: the bytes of the run that nothing disturbed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.pipeline import iter_folders
from retro.artifacts.manifest import open_manifest
from retro.artifacts.release import open_release
from retro.cli.main import main
from retro.config.loader import load_config
from retro.config.preparation import PrepConfig
from retro.data.chunk_store import open_chunk_store
from retro.data.document import document_files, read_documents
from tests.system.workplace import differences, prep_settings, result_files, write_config, write_corpus
from tests.system.zygote import Zygote

CACHE = ".corpus-hashes.jsonl"  # keeps hashes of corpus files between runs; speed only
VECTORS = {
    "index": {"kind": "vectors", "vectors": {"factory": "IVF8,Flat", "probes": 4, "recall_queries": 50}},
    "embed": {"kind": "lexical", "lexical": {"dimension": 32, "buckets": 1024}, "shard_chunks": 300},
}


@dataclass(frozen=True)
class Clean:
    """An undisturbed preparation: its settings, its folder, every byte of its results."""

    settings: dict[str, Any]
    root: Path
    files: dict[str, bytes]


def prepare(folder: Path, corpus: Path, changes: dict[str, Any]) -> Clean:
    root = folder / "clean"
    settings = {**prep_settings(corpus, root), **changes}
    assert main(["prep", "run", str(write_config(folder / "clean.yaml", settings))]) == 0
    return Clean(settings, root, result_files(root))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "docs")


@pytest.fixture(scope="module")
def bm25(tmp_path_factory, corpus) -> Clean:
    return prepare(tmp_path_factory.mktemp("bm25"), corpus, {})


@pytest.fixture(scope="module")
def vectors(tmp_path_factory, corpus) -> Clean:
    return prepare(tmp_path_factory.mktemp("vectors"), corpus, VECTORS)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as found:
        yield found


def leftovers(root: Path) -> list[str]:
    """What a finished preparation must not leave behind: temporaries, claims, the folder of both."""
    hidden = [path for path in root.rglob("*") if path.name.startswith(".") or ".tmp-" in path.name]
    return [str(path.relative_to(root)) for path in hidden if not path.name.startswith(CACHE)]


@dataclass
class Torture:
    """One configuration, prepared again and again in fresh folders by processes that are killed.

    kills: by the stage that was at work.
    """

    zygote: Zygote
    folder: Path
    settings: dict[str, Any]
    clean: dict[str, bytes]
    generator: np.random.Generator
    kills: Counter[str] = field(default_factory=Counter)
    rounds: int = 0

    def begin(self) -> tuple[Path, list[str], Path]:
        """(root, command, log) of a new round."""
        self.rounds += 1
        root = self.folder / f"round-{self.rounds}"
        config = write_config(self.folder / f"round-{self.rounds}.yaml", {**self.settings, "root": str(root)})
        return root, ["prep", "run", str(config)], self.folder / f"round-{self.rounds}.log"

    def moment(self, operations: int) -> tuple[str, int]:
        """A random operation before or after which to die."""
        return ("before", "after")[int(self.generator.integers(2))], int(self.generator.integers(1, operations + 1))

    def count(self, root: Path) -> None:
        """A kill, filed under the stage whose folder is unfinished (or whose manifest was the last thing it did)."""
        at_work = [p for p in root.glob("*-*") if p.is_dir() and not (p / "manifest.json").exists()]
        self.kills[at_work[0].name.rpartition("-")[0] if at_work else "between"] += 1

    def check(self, root: Path) -> None:
        assert differences(self.clean, result_files(root)) == []
        assert leftovers(root) == []

    def kill_and_resume(self, kills: int, operations: int, timed: float = 0.2) -> None:
        """Rounds until so many were killed. A share of them by a timer, the others at an operation."""
        while self.kills.total() < kills:
            root, command, log = self.begin()
            while True:
                if self.generator.uniform() < timed:
                    pid = self.zygote.fork(command, log)
                    time.sleep(float(self.generator.uniform(0.0, 0.4)))
                    os.kill(pid, signal.SIGKILL)
                    code = self.zygote.wait(pid)
                else:
                    code = self.zygote.run(command, log, self.moment(operations))
                assert code in (0, -signal.SIGKILL), log.read_text()
                if code == 0:
                    break
                self.count(root)
            self.check(root)

    def kill_one_of_two(self, kills: int, operations: int) -> None:
        """Two runs in one folder; one, the other or both are killed, and begin again."""
        while self.kills.total() < kills:
            root, command, log = self.begin()
            codes = [-signal.SIGKILL, -signal.SIGKILL]
            while any(codes):
                pids = [
                    self.zygote.fork(command, log, self.moment(operations) if kill else None) for kill in self.who()
                ]
                codes = [self.zygote.wait(pid) for pid in pids]
                assert set(codes) <= {0, -signal.SIGKILL}, log.read_text()
                for code in codes:
                    if code:
                        self.count(root)
            self.check(root)

    def who(self) -> tuple[bool, bool]:
        return ((True, False), (False, True), (True, True))[int(self.generator.integers(3))]

    def kill_with_a_pool(self, kills: int) -> None:
        """Runs with two worker processes; the run itself or one of its workers is killed at a random time."""
        while self.kills.total() < kills:
            root, command, log = self.begin()
            code = -signal.SIGKILL
            while code:
                pid = self.zygote.fork(command, log)
                time.sleep(float(self.generator.uniform(0.1, 2.5)))
                workers = children(pid)
                victim = workers[0] if workers and self.generator.uniform() < 0.3 else pid
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                finally:
                    code = self.zygote.wait(pid)
                assert code in (0, -signal.SIGKILL), log.read_text()
                if code or victim != pid:
                    self.count(root)
            self.check(root)


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def all_stages(found: Torture) -> set[str]:
    """Names of the stages of the configuration, once a round has been finished."""
    config = found.folder / "round-1.yaml"
    return {stage.name for _, stage, _ in iter_folders(load_config(PrepConfig, config))} if found.rounds else {"none"}


@pytest.fixture
def torture(zygote, tmp_path):
    """Torture of an undisturbed preparation's configuration; seeded."""

    def build(clean: Clean, seed: int, **settings: Any) -> Torture:
        folder = tmp_path / f"kills-{seed}"
        folder.mkdir()
        return Torture(zygote, folder, {**clean.settings, **settings}, clean.files, np.random.default_rng(seed))

    return build


def test_killed_20_times_and_resumed(bm25, torture):
    found = torture(bm25, seed=0)
    found.kill_and_resume(20, operations=250)
    assert len(found.kills) >= 6, found.kills


def test_two_runs_at_once_of_which_some_are_killed(bm25, torture):
    found = torture(bm25, seed=1)
    found.kill_one_of_two(4, operations=300)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_200_times_over_all_stages_and_resumed(bm25, vectors, torture):
    """Nothing lost, nothing double: 200 kills, in each of the stages, then the bytes of the undisturbed run."""
    both = [torture(bm25, seed=2), torture(vectors, seed=3)]
    for found in both:
        found.kill_and_resume(100, operations=50, timed=0.1)
    # Stages that both have are the same code. None by the clock now: a loaded machine would shift where they fall.
    for found in both:
        while missing := all_stages(found) - set(both[0].kills + both[1].kills):
            assert found.rounds < 60, f"no kill met {missing}"
            found.kill_and_resume(found.kills.total() + 1, operations=50, timed=0.0)
    kills = both[0].kills + both[1].kills
    print(f"\n{kills.total()} kills in {sum(found.rounds for found in both)} rounds: {dict(kills)}")
    assert kills.total() >= 200


@pytest.mark.slow
def test_two_runs_at_once_killed_40_times(vectors, torture):
    torture(vectors, seed=4).kill_one_of_two(40, operations=150)


@pytest.mark.slow
def test_runs_with_two_workers_killed_8_times(bm25, torture):
    torture(bm25, seed=5, workers=2).kill_with_a_pool(8)


def test_nothing_is_lost_and_nothing_is_double_in_what_the_kills_are_compared_with(bm25, corpus):
    written = [json.loads(line)["id"] for path in corpus.glob("*.jsonl") for line in path.read_text().splitlines()]
    release = open_release(bm25.root / "release.json")
    ids = [document.id for path in document_files(release.documents) for document in read_documents(path)]
    assert sorted(ids) == sorted(written) and len(set(ids)) == len(ids)
    documents = 0
    for split in release.splits.values():
        tokens, chunks = open_manifest(split.tokens), open_chunk_store(split.chunks)
        documents += tokens.rows
        assert int(chunks.lengths(np.arange(chunks.num_chunks)).sum()) == tokens.stats["tokens"]
        assert split.neighbors is not None and open_manifest(split.neighbors).rows == chunks.num_chunks
    assert documents == len(ids)
