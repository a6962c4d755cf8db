"""Fine-tuning on prepared questions: arms, what is refused, and what belongs to a run's identity."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from retro.artifacts.checkpoint_folders import list_checkpoints
from retro.config.errors import ArtifactMismatchError, ArtifactMissingError, ConfigError
from retro.config.loader import from_dict
from retro.config.qa import QaLayoutConfig, parse_arm
from retro.config.train import TrainConfig
from retro.data.qa.dataset import QaDataset
from retro.model.retro import is_retrieval_parameter
from retro.train.assembly import build_loader
from retro.train.data import RunData
from retro.train.distributed import open_processes
from retro.train.run import train
from tests.data.qa.questions import WordTokenizer, question
from tests.train import releases
from tests.train.questions import TASK, qa_settings, write_questions


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("questions") / "prepared")


def config(release: Path, root: Path, questions: Path, arm: str, retro: bool | None = None, **changes: Any):
    retro = arm.startswith("retro") if retro is None else retro
    return from_dict(TrainConfig, releases.settings(release, root, retro, **{**qa_settings(questions, arm), **changes}))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(list_checkpoints(run / "checkpoints")[-1][1] / "model.safetensors")


@pytest.mark.parametrize("arm", ["closed_book", "rag", "retro", "retro++"])
def test_every_arm_learns(release: Path, questions: Path, tmp_path: Path, arm: str):
    run = train(config(release, tmp_path, questions, arm, steps=24, validate_every=12)).folder
    rows = releases.metrics(run, "train")
    assert rows[-1]["loss"] < rows[0]["loss"]
    # Four questions of a letter and the end-of-text token each: nothing else is scored.
    assert all(row["tokens"] <= 2 * 4 * 3 * row["step"] for row in rows)
    assert [row["step"] for row in releases.metrics(run, "validation")] == [12, 24]
    assert "left out: 1 too long" in (run / "log.txt").read_text()
    assert f"questions: {questions}" in (run / "config.yaml").read_text()


def test_a_retro_that_reads_no_passages_keeps_its_retrieval(release: Path, questions: Path, tmp_path: Path):
    base = train(releases.config(release, tmp_path, name="base", steps=2, warmup_steps=1)).folder
    values = releases.settings(release, tmp_path, **qa_settings(questions, "rag"), init_from=str(base), name="tuned")
    del values["model"]
    run = train(from_dict(TrainConfig, values)).folder
    before, after = weights(base), weights(run)
    # Other processes would wait for gradients that never come.
    assert "of them frozen" in (run / "log.txt").read_text()
    for name in before:
        assert torch.equal(before[name], after[name]) == is_retrieval_parameter(name), name


def hashes(run: Path) -> list[str]:
    return [row["sample_hash"] for row in releases.metrics(run, "train")]


def test_the_order_depends_on_the_seed_alone(release: Path, questions: Path, tmp_path: Path):
    runs = [
        hashes(train(config(release, tmp_path, questions, "rag", name=f"run{i}", **changes)).folder)
        for i, changes in enumerate(({}, {"micro_batch": 2}, {"seed": 1}))
    ]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.slow
def test_workers_make_the_same_batches(release: Path, questions: Path, tmp_path: Path):
    runs = [
        train(config(release, tmp_path, questions, "retro++", name=f"run{workers}", loader_workers=workers)).folder
        for workers in (0, 2)
    ]
    assert hashes(runs[0]) == hashes(runs[1])
    assert all(torch.equal(a, b) for a, b in zip(*(weights(run).values() for run in runs), strict=True))


def test_sorting_saves_padding(release: Path, tmp_path: Path):
    """The first 48 questions in batches of 4: fewer positions than without."""
    made = [question(i, passages=[]) for i in range(48)]
    made = [
        dataclasses.replace(q, question=dataclasses.replace(q.question, question="w " * (1 + 7 * i % 40)))
        for i, q in enumerate(made)
    ]
    data = QaDataset(made, parse_arm("closed_book"), QaLayoutConfig(), TASK, WordTokenizer(), 8)
    positions = {}
    for window in (1, 12):
        values = qa_settings(tmp_path, "closed_book")
        values["qa"]["sort_batches"] = window
        run = from_dict(TrainConfig, releases.settings(release, tmp_path, False, **values))
        batches = iter(build_loader(run, RunData(data, None, None), open_processes(run)))
        positions[window] = sum(next(batches).tokens_BN.size for _ in range(12))
        batches.close()
    assert positions[12] < 0.85 * positions[1]


@pytest.mark.parametrize(
    ("arm", "changes", "message"),
    [
        ("retro", {"retro": False}, r"qa\.arm: 'retro' puts passages into the encoder, which a plain GPT lacks"),
        ("retro", {"num_neighbors": 1}, r"num_neighbors: expected at least 2.*set num_neighbors=2"),
        ("rag", {"sequence_length": 48}, r"sequence_length: expected at least 56, 6 chunks of 8"),
        ("rag", {"split": "test"}, r"qa\.split: expected one of train, dev.*found 'test'"),
        ("rag", {"validation_split": "valid"}, r"qa\.validation_split: .*found 'valid'; .*validate_every=0"),
        ("rag", {"validation_split": "train"}, r"qa\.validation_split: expected another split"),
        ("rag", {"answer_tokens": 9}, r"answer_tokens: expected at most 8, the model's chunk_length, found 9"),
        ("rag/oracle", {}, r"qa\.arm: expected closed_book, rag, retro or retro\+\+, found 'rag/oracle'"),
        ("rag", {"packing": "documents"}, r"packing: expected 'chunks'"),
        ("rag", {"dataset": "text"}, r"qa: expected with dataset 'qa'.*found dataset 'text'"),
        ("rag", {"qa": None}, r"qa: .*found none; give qa\.questions"),
        ("rag", {"retro": True, "freeze_backbone": True}, r"freeze_backbone: trains what reads passages"),
        ("rag", {"sort_batches": 0}, r"sort_batches: expected 1 or more"),
    ],
)
def test_mistakes_are_one_line(
    release: Path, questions: Path, tmp_path: Path, arm: str, changes: dict[str, Any], message: str
):
    values = qa_settings(questions, arm)
    for field in ("split", "validation_split", "sort_batches"):
        if field in changes:
            values["qa"][field] = changes[field]
    if "answer_tokens" in changes:
        values["qa"]["layout"]["answer_tokens"] = changes["answer_tokens"]
    values |= {name: value for name, value in changes.items() if name in TrainConfig.__dataclass_fields__}
    retro = changes.get("retro", arm.startswith("retro"))
    with pytest.raises(ConfigError, match=message):
        train(from_dict(TrainConfig, releases.settings(release, tmp_path, retro, **values)))


def test_questions_belong_to_a_run_by_content(release: Path, questions: Path, tmp_path: Path):
    runs = tmp_path / "runs"
    train(config(release, runs, questions, "rag"))
    moved = tmp_path / "moved"
    shutil.copytree(questions, moved)
    train(config(release, runs, moved, "rag"))  # finished: nothing to do
    other = write_questions(tmp_path / "other", seed=1)
    with pytest.raises(ArtifactMismatchError, match=r"content of qa\.questions: checkpoint"):
        train(config(release, runs, other, "rag"))
    with pytest.raises(ArtifactMismatchError, match=r"qa\.arm: checkpoint \"rag\", now \"closed_book\""):
        train(config(release, runs, questions, "closed_book"))
    with pytest.raises(ArtifactMissingError, match="retro qa prepare"):
        train(config(release, runs, tmp_path / "nothing", "rag"))
