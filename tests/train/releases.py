"""A tiny release whose text can be learnt, and configurations over it; made in milliseconds, the same every time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from retro.artifacts.release import Split, write_release
from retro.config.loader import from_dict
from retro.config.train import TrainConfig
from tests.data.builders import (
    random_neighbors,
    write_artifact,
    write_chunks,
    write_neighbors,
    write_real_tokenizer,
    write_tokens,
)

VOCABULARY, CHUNK, SEQUENCE_CHUNKS = 300, 8, 4
RETRO_LAYERS = (2,)
CLOCK = (
    "elapsed_s", "tokens_per_s", "sequences_per_s", "model_tflops_per_s", "mfu", "data_wait", "validation_s",
    "checkpoint_s", "seconds", "memory_gib", "gpu_allocated_gib", "gpu_reserved_gib",
)  # fmt: skip


def build_release(root: Path, seed: int = 0) -> Path:
    """release.json of documents that follow a noisy rule: each token is mostly its predecessor plus 3, modulo 40."""
    tokenizer = write_real_tokenizer(root / "tokenizer", VOCABULARY)
    (root / "documents").mkdir()
    documents = write_artifact(root / "documents", "documents", {"seed": seed}, {}, [])
    chunks, tokens = {}, {}
    for number, (split, count) in enumerate((("train", 40), ("valid", 12))):
        generator = np.random.default_rng([seed, number])
        texts = [_text(generator) for _ in range(count)]
        names = f"{split}-{{}}"
        tokens[split] = write_tokens(root / f"tokens-{split}", [texts], tokenizer, vocab_size=VOCABULARY, names=names)
        chunks[split] = write_chunks(root / f"chunks-{split}", tokens[split], CHUNK)
    splits = {}
    for split in ("train", "valid"):
        rows = len(np.load(chunks[split] / "starts-00000.npy"))
        if split == "train":
            table = random_neighbors(chunks[split], 6, 0.2, seed)
        else:
            size = len(np.load(chunks["train"] / "starts-00000.npy"))
            table = np.random.default_rng(seed).integers(0, size, (rows, 2))
        neighbors = write_neighbors(root / f"neighbors-{split}", chunks[split], chunks["train"], table)
        splits[split] = Split(tokens[split], chunks[split], neighbors)
    path = root / "release.json"
    write_release(
        path,
        tokenizer=tokenizer,
        documents=documents,
        database_tokens=tokens["train"],
        database_chunks=chunks["train"],
        searcher=None,
        splits=splits,
    )
    return path


def _text(generator: np.random.Generator) -> list[int]:
    length = int(generator.integers(3, 70))
    steps = np.where(generator.random(length) < 0.8, 3, generator.integers(0, 40, length))
    return (260 + np.cumsum(steps) % 40).tolist()


def settings(release: Path, root: Path, retro: bool = True, **changes: Any) -> dict[str, Any]:
    """Fields of a run of a fraction of a second; `changes` override them."""
    model = {
        "width": 16,
        "num_layers": 2,
        "num_heads": 2,
        "ffn_width": 24,
        "chunk_length": CHUNK,
        "cross_attention_layers": list(RETRO_LAYERS) if retro else [],
        "encoder": {"num_layers": 1},
    }
    values: dict[str, Any] = {
        "name": "run",
        "release": str(release),
        "run_root": str(root),
        "model": model,
        "sequence_length": CHUNK * SEQUENCE_CHUNKS,
        "num_neighbors": 2,
        "global_batch": 4,
        "steps": 8,
        "warmup_steps": 2,
        "learning_rate": 1e-2,
        "min_learning_rate": 1e-3,
        "precision": "fp32",
        "device": "cpu",
        "validate_every": 4,
        "validate_sequences": 3,
        "checkpoint_every": 4,
        "log_every": 2,
    }
    return {**values, **changes}


def config(release: Path, root: Path, retro: bool = True, **changes: Any) -> TrainConfig:
    return from_dict(TrainConfig, settings(release, root, retro, **changes))


def metrics(run: Path, event: str | None = None) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without the fields that depend on the clock or the machine."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows if event in (None, row["event"])]


def write_yaml(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


def command(config_file: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "retro.cli.train", str(config_file), *overrides]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **extra}


def start_and_signal(arguments: list[str], metrics_file: Path, step: int, number: signal.Signals) -> tuple[int, str]:
    """Start a training process, send it the signal once metrics.jsonl tells of `step`; (exit code, stderr)."""
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        deadline = time.monotonic() + 120
        while f'"step": {step},' not in (metrics_file.read_text() if metrics_file.is_file() else ""):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"ended before step {step}: {process.communicate()[1]}")
            time.sleep(0.002)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
        return process.returncode, errors
    finally:
        process.kill()
