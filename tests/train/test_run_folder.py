"""What a run leaves behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from retro.artifacts.release import open_release
from retro.cli.train import main
from retro.config.errors import ArtifactMissingError, ConfigError
from retro.config.loader import load_config
from retro.config.train import TrainConfig
from retro.data.chunk_store import open_chunk_store
from retro.data.neighbor_table import open_neighbor_table
from retro.model.weights import load_model
from retro.train.run import train
from tests.train import releases


def test_run_folder_has_the_promised_files(release: Path, tmp_path: Path):
    run = train(releases.config(release, tmp_path)).folder
    assert sorted(p.name for p in run.iterdir() if not p.name.startswith(".")) == [
        "checkpoints", "code", "config.yaml", "environment.json", "log.txt", "metrics.jsonl", "packages.txt",
        "release.json", "sessions.jsonl",
    ]  # fmt: skip
    again = load_config(TrainConfig, run / "config.yaml")
    assert again.model.vocab_size == releases.VOCABULARY
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert environment["processes"] == 1
    assert "step 8/8" in (run / "log.txt").read_text()
    model = load_model(run / "checkpoints" / "step_000008")
    assert model.config.is_retro
    stored = json.loads((run / "checkpoints" / "step_000008" / "config.json").read_text())
    assert stored["tokenizer"]["fingerprint"]
    assert (stored["sequence_length"], stored["num_neighbors"], stored["step"]) == (32, 2, 8)


def test_the_log_says_once_how_many_neighbors_the_sequences_lack(release: Path, tmp_path: Path):
    config = releases.config(release, tmp_path, num_neighbors=6, validate_every=0)
    log = (train(config).folder / "log.txt").read_text()
    lacking = [line for line in log.splitlines() if "neighbors missing on" in line]
    assert len(lacking) == 1 and lacking[0].endswith("; raise neighbors.keep of the preparation")
    opened = open_release(release)
    queries = open_chunk_store(opened.split("train").chunks)
    table = open_neighbor_table(opened.split("train").neighbors, queries, queries)
    documents, stored = queries.documents(np.arange(queries.num_chunks)), table.rows(np.arange(queries.num_chunks))
    excluded = 0
    for start in range(0, queries.num_chunks, releases.SEQUENCE_CHUNKS):
        ids = stored[start : start + releases.SEQUENCE_CHUNKS]
        touched = documents[start : start + releases.SEQUENCE_CHUNKS]
        excluded += int(np.isin(documents[ids[ids >= 0]], touched).sum())
    expected = f"{(stored < 0).mean():.2%} were not found, {excluded / stored.size:.2%} are of other documents"
    assert excluded > 0 and expected in lacking[0]
    gpt = (train(releases.config(release, tmp_path, retro=False, name="gpt")).folder / "log.txt").read_text()
    assert "neighbors missing" not in gpt


def test_the_copied_release_opens_from_the_run_folder(release: Path, tmp_path: Path):
    run = train(releases.config(release, tmp_path)).folder
    original, copy = open_release(release), open_release(run / "release.json")
    assert copy.fingerprint == original.fingerprint
    assert copy.splits == original.splits
    assert copy.tokenizer == original.tokenizer


def test_starts_from_the_weights_of_another_run(release: Path, tmp_path: Path):
    first = train(releases.config(release, tmp_path, name="first", steps=40, checkpoint_every=0)).folder
    values = releases.settings(release, tmp_path, name="second", init_from=str(first), log_every=1)
    del values["model"]
    file = releases.write_yaml(tmp_path / "second.yaml", values)
    assert main([str(file)]) == 0
    losses = {name: releases.metrics(tmp_path / name, "train") for name in ("first", "second")}
    assert losses["second"][0]["loss"] < 0.8 * losses["first"][0]["loss"]
    assert load_config(TrainConfig, tmp_path / "second" / "config.yaml").model.cross_attention_layers == (2,)
    assert main([str(file)]) == 0  # finished

    with pytest.raises(ConfigError, match="leave the section model out"):
        train(releases.config(release, tmp_path, retro=False, name="third", init_from=str(first)))
    with pytest.raises(ArtifactMissingError, match="init_from"):
        train(releases.config(release, tmp_path, name="third", init_from=str(tmp_path / "absent")))
    shutil.rmtree(first / "checkpoints" / "step_000040")
    with pytest.raises(ArtifactMissingError, match="no finished checkpoint"):
        train(releases.config(release, tmp_path, name="third", init_from=str(first)))


def test_command_line_overrides_the_file(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    file = releases.write_yaml(tmp_path / "run.yaml", releases.settings(release, tmp_path))
    assert main([str(file), "steps=3", "name=short", "model.width=8"]) == 0
    assert "3 steps of 4 x 32 tokens" in capsys.readouterr().err
    assert load_config(TrainConfig, tmp_path / "short" / "config.yaml").model.width == 8


def test_an_unwritable_place_is_a_clear_error(release: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="the run folder cannot be made"):
        train(releases.config(release, tmp_path / "file"))
