"""The number of processes changes the time, never a byte."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_prep.deduplicate import deduplicate_steps
from data_prep.ingest import IngestStage
from data_prep.readers.jsonl import JsonlReader
from data_prep.runner import Executor, run_stage
from data_prep.tokenize_documents import TokenizeStage
from retro.cli.main import main
from retro.config.loader import load_config
from retro.config.prep_tokens import TokensConfig
from retro.config.preparation import PrepConfig
from tests.system.workplace import (
    differences,
    environment,
    prep_settings,
    result_files,
    train_command,
    write_config,
)


def test_two_processes_give_the_artifacts_of_one(place, tmp_path):
    """The stages of the release, all of several shards where the tiny corpus allows it, made in a pool of two."""
    settings = {**prep_settings(place.root / "corpus", tmp_path / "prep"), "workers": 2}
    config = write_config(tmp_path / "prep.yaml", settings)
    assert main(["prep", "run", str(config)]) == 0
    one, two = result_files(place.prep), result_files(tmp_path / "prep")
    assert differences(one, two) == []
    records = Counter(name.split("/")[0] for name in one if "/shards/" in name and "_finish" not in name)
    sharded = {folder.split("-")[0] for folder, count in records.items() if count > 1}
    assert sharded >= {"find_duplicates", "build_index", "find_neighbors", "question_sequences"}


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "retro.cli.main", *arguments], env=environment())


def again(place, tmp_path: Path, **changes: Any) -> tuple[Path, str]:
    """(root, configuration file) of the release's preparation in another, empty folder."""
    settings = {**prep_settings(place.root / "corpus", tmp_path / "prep"), **changes}
    return tmp_path / "prep", str(write_config(tmp_path / "prep.yaml", settings))


def test_two_commands_at_once_share_the_work(place, tmp_path):
    root, config = again(place, tmp_path)
    assert [process.wait(120) for process in [start("prep", "run", config) for _ in range(2)]] == [0, 0]
    assert differences(result_files(place.prep), result_files(root)) == []
    assert not list(root.rglob(".work"))


def test_three_ranks_of_which_one_is_killed(place, tmp_path):
    root, config = again(place, tmp_path)
    ranks = [start("prep", "run", "--rank", str(rank), "--world-size", "3", config) for rank in range(3)]
    deadline = time.monotonic() + 120
    while not list(root.glob("chunk-*/shards/*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ranks[1].kill()
    assert [process.wait(120) for process in ranks] == [0, -signal.SIGKILL, 0]
    assert differences(result_files(place.prep), result_files(root)) == []
    # What the killed rank had in a stage that the others had already left stays for the next run to clear.
    left = [path for work in root.rglob(".work") for path in work.iterdir()]
    assert all(json.loads(path.read_text())["pid"] == ranks[1].pid for path in left), left


@pytest.mark.slow
def test_a_ray_cluster_gives_the_artifacts_of_one_process(place, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
    root, config = again(place, tmp_path, workers=2, executor={"type": "ray"})
    assert start("prep", "run", config).wait(280) == 0
    assert differences(result_files(place.prep), result_files(root)) == []


def test_two_processes_give_the_documents_and_tokens_of_one(place, tmp_path):
    """Ingest, deduplicate and tokenize take one shard for so small a corpus: here by their own small pieces."""
    config = load_config(PrepConfig, place.prep_config)
    tokenizer = next(place.prep.glob("train_tokenizer-*"))
    for workers in (1, 2):
        root, executor = tmp_path / str(workers), Executor(workers)
        ingest = IngestStage(config.ingest)
        ingest.reader = JsonlReader(config.ingest.jsonl, config.ingest.split.field, piece_bytes=15_000)
        assert len(ingest.plan()) >= 3
        documents = run_stage(ingest, root, executor, progress=False)
        done = {"ingest": documents}
        for name, build in deduplicate_steps(config.deduplicate):
            stage = build(done)
            assert len(stage.plan()) >= 3
            done[name] = run_stage(stage, root, executor, progress=False)
        tokenize = TokenizeStage(TokensConfig(splits=("train",), shard_bytes=1), documents, tokenizer)
        assert len(tokenize.plan()) >= 3
        run_stage(tokenize, root, executor, progress=False)
    one = result_files(tmp_path / "1")
    assert len({name.split("-")[0] for name in one}) == 5
    assert differences(one, result_files(tmp_path / "2")) == []


@pytest.mark.slow
def test_two_processes_give_the_vectors_of_one(place, tmp_path):
    for workers in (1, 2):
        settings = {
            **prep_settings(place.root / "corpus", tmp_path / f"prep-{workers}"),
            "workers": workers,
            "index": {"kind": "vectors", "vectors": {"factory": "IVF8,Flat", "probes": 4, "recall_queries": 50}},
            "embed": {"kind": "lexical", "lexical": {"dimension": 32, "buckets": 1024}, "shard_chunks": 300},
        }
        assert main(["prep", "run", str(write_config(tmp_path / f"{workers}.yaml", settings))]) == 0
    one, two = result_files(tmp_path / "prep-1"), result_files(tmp_path / "prep-2")
    assert differences(one, two) == []
    assert any(name.startswith("embed") and "00001" in name for name in one)


@pytest.mark.parametrize("workers", [2])
def test_loader_processes_give_the_weights_of_none(place, tmp_path, workers):
    weights, losses = [], []
    for count in (0, workers):
        command = train_command("retro", place.release, tmp_path, f"workers-{count}", steps=5)
        assert main([*command, f"loader_workers={count}"]) == 0
        run = tmp_path / f"workers-{count}"
        weights.append((run / "checkpoints" / "step_000005" / "model.safetensors").read_bytes())
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows])
    assert weights[0] == weights[1] and losses[0] == losses[1]
