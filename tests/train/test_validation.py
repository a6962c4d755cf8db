"""Validation against plain arithmetic, and without any influence on training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from retro.artifacts.checkpoint_folders import list_checkpoints
from retro.artifacts.release import open_release
from retro.config.loader import from_dict
from retro.config.train import TrainConfig
from retro.data.tokenizer import open_tokenizer
from retro.model import RetroModel
from retro.train.data import open_data, resolve_vocabulary
from retro.train.distributed import open_processes
from retro.train.run import train
from retro.train.state import TrainState
from retro.train.validation import Validation
from tests.train import releases


@pytest.mark.parametrize("retro", [False, True], ids=["gpt", "retro"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_loss_and_bits_per_byte(release: Path, tmp_path: Path, retro: bool, batch: int):
    opened = open_release(release)
    tokenizer = open_tokenizer(opened.tokenizer)
    config = resolve_vocabulary(releases.config(release, tmp_path, retro), tokenizer)
    data = open_data(config, opened, tokenizer)
    model = RetroModel(config.model)
    validation = Validation(data.validation, data.byte_lengths, sequences=5, batch=batch)
    record = validation.run(model, open_processes(config), TrainState(step=7))

    nats, tokens, text_bytes = 0.0, 0, 0
    for i in range(5):
        one = data.validation[i].to_torch()
        logits = model(one.tokens_BN, one.neighbors_BLKR, one.neighbor_mask_BLKR).logits
        targets = one.targets_BN[one.loss_mask_BN]
        nats += float(F.cross_entropy(logits[one.loss_mask_BN], targets, reduction="sum").detach())
        tokens += len(targets)
        text_bytes += sum(int(data.byte_lengths[t]) for t in targets)
    assert record.state.step == 7
    assert (record.tokens, record.bytes) == (tokens, text_bytes)
    assert record.loss == pytest.approx(nats / tokens, rel=1e-5)
    assert record.bits_per_byte == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-5)
    assert model.training


def test_has_no_influence_on_training(release: Path, tmp_path: Path):
    weights = {}
    for every in (0, 1):
        values = releases.settings(release, tmp_path, validate_every=every, name=f"run{every}")
        values["model"]["dropout"] = 0.2
        outcome = train(from_dict(TrainConfig, values))
        weights[every] = (list_checkpoints(outcome.folder / "checkpoints")[-1][1] / "model.safetensors").read_bytes()
        assert len(releases.metrics(outcome.folder, "validation")) == 8 * every
    assert weights[0] == weights[1]


def test_looks_at_no_more_sequences_than_there_are(release: Path, tmp_path: Path):
    opened = open_release(release)
    tokenizer = open_tokenizer(opened.tokenizer)
    config = resolve_vocabulary(releases.config(release, tmp_path, retro=False), tokenizer)
    data = open_data(config, opened, tokenizer)
    validation = Validation(data.validation, data.byte_lengths, sequences=10**6, batch=4)
    with torch.no_grad():
        record = validation.run(RetroModel(config.model), open_processes(config), TrainState())
    store = data.validation.queries.tokens
    assert record.tokens == store.num_tokens - store.num_documents  # every token but the first of each document
