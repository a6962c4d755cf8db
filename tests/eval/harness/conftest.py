"""A GPT and a RETRO that have seen the tiny corpus for a few steps, and the GPT's export for transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from retro.artifacts.checkpoint_folders import find_checkpoint
from retro.data.tokenizer import Tokenizer, open_tokenizer
from retro.inference.checkpoint import open_checkpoint
from retro.model import RetroModel
from tests.eval.workspace import SEQUENCE, Workspace, documentation, workspace, write_run

__all__ = ["workspace"]


@dataclass(frozen=True)
class Runs:
    """Run folders of a RETRO and a GPT, and the GPT exported."""

    retro: Path
    gpt: Path
    exported: Path


def train(model: RetroModel, tokenizer: Tokenizer, steps: int = 80) -> None:
    """Enough that greedy text is text: untrained models write bytes that are no UTF-8, which tokenizers show in
    different ways."""
    ids = [i for d in documentation() for i in (tokenizer.bos_id, *tokenizer.encode(d["text"]), tokenizer.eos_id)]
    stream, generator = torch.tensor(ids), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        starts = torch.randint(len(ids) - SEQUENCE - 1, (8,), generator=generator)
        rows = torch.stack([stream[start : start + SEQUENCE + 1] for start in starts.tolist()])
        model(rows[:, :-1], targets_BN=rows[:, 1:]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def trained_run(folder: Path, workspace: Workspace, retro: bool) -> Path:
    """A run folder as `write_run` makes it, with the weights of a trained model."""
    from retro.artifacts.manifest import Manifest, describe_file, write_manifest
    from retro.model.weights import save_model

    tokenizer = open_tokenizer(workspace.release.tokenizer)
    write_run(folder, workspace.release, retro=retro)
    model = open_checkpoint(folder).load_model()
    train(model.train(), tokenizer)
    checkpoint = find_checkpoint(folder)
    assert checkpoint is not None
    for path in checkpoint.iterdir():
        path.unlink()
    checkpoint.rmdir()
    save_model(checkpoint, model, {"tokenizer": tokenizer.fingerprint})
    files = [describe_file(path) for path in sorted(checkpoint.iterdir())]
    write_manifest(checkpoint, Manifest("checkpoint", "train", 1, "0" * 16, {}, {}, [], files, {}))
    return folder


@pytest.fixture(scope="session")
def runs(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Built once per test session."""
    from retro.cli.export import main

    root = tmp_path_factory.mktemp("harness")
    gpt = trained_run(root / "gpt", workspace, retro=False)
    retro = trained_run(root / "retro", workspace, retro=True)
    main([f"checkpoint={gpt}", f"output={root / 'exported'}", f"max_positions={SEQUENCE}"])
    return Runs(retro, gpt, root / "exported")
