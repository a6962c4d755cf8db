"""A tiny documentation corpus and the commands that take it from text to report. Everything goes through `retro`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.eval.workspace import documentation

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
CHUNK, SEQUENCE = 16, 64
#: Files that are not results: locks, speed-only caches, clocks, hardware and text for people.
CLOCK_FIELDS = (
    "elapsed_s", "tokens_per_s", "sequences_per_s", "model_tflops_per_s", "mfu", "data_wait", "validation_s",
    "checkpoint_s", "memory_gib", "seconds", "flop_seconds", "data_seconds", "throughput", "peak_tflops",
)  # fmt: skip
UNCOMPARED = ("environment.json", "log.txt", "sessions.jsonl")


def write_corpus(folder: Path, count: int = 150) -> Path:
    """`count` documents in three files."""
    folder.mkdir(parents=True)
    records = documentation(count)
    third = -(-count // 3)
    for number in range(3):
        part = records[number * third : (number + 1) * third]
        (folder / f"docs-{number}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in part))
    return folder


def prep_settings(corpus: Path, root: Path) -> dict[str, Any]:
    """Fields of configs/prep for the tiny corpus: every stage, several shards each where that costs little."""
    return {
        "root": str(root),
        "workers": 1,
        "ingest": {
            "reader": "jsonl",
            "jsonl": {"folder": str(corpus), "files": ["*.jsonl"], "id_field": "id", "title_field": "title"},
            "split": {"by": "field", "field": "split"},
        },
        "tokenizer": {"train": {"vocab_size": 400}},
        "chunk": {"chunk_length": CHUNK, "shard_documents": 50},
        "index": {"kind": "bm25", "bm25": {"terms": "tokens", "shard_chunks": 200}},
        "neighbors": {"candidates": 60, "keep": 16, "shard_chunks": 400},
        "questions": {"max_answer_share": 0.3, "test_fraction": 0.3},
        "question_sequences": {"question_chunks": 5, "candidates": 20, "keep": 10, "shard_questions": 80},
    }


def write_config(path: Path, settings: dict[str, Any]) -> Path:
    """A configuration file (JSON is YAML)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings))
    return path


def train_overrides(release: Path, runs: Path, name: str, steps: int = 30) -> list[str]:
    """What configs/train/tiny_*.yaml needs to train on the tiny corpus."""
    return [
        f"name={name}",
        f"run_root={runs}",
        f"release={release}",
        f"model.chunk_length={CHUNK}",
        "model.width=32",
        f"sequence_length={SEQUENCE}",
        f"steps={steps}",
        "warmup_steps=5",
        "precision=fp32",
        "device=cpu",
        "validate_every=10",
        "validate_sequences=4",
        "checkpoint_every=10",
        "log_every=1",
    ]


def train_command(kind: str, release: Path, runs: Path, name: str | None = None, steps: int = 30) -> list[str]:
    """`retro train` of a tiny model: kind is gpt or retro."""
    config = CONFIGS / "train" / f"tiny_{kind}.yaml"
    return ["train", str(config), *train_overrides(release, runs, name or kind, steps)]


def eval_command(task: str, checkpoint: Path, *overrides: str) -> list[str]:
    """`retro eval` with the file of that task."""
    return ["eval", str(CONFIGS / "eval" / f"{task}.yaml"), f"checkpoint={checkpoint}", "device=cpu", *overrides]


def result_files(root: Path, leave_out: Iterable[str] = ()) -> dict[str, bytes]:
    """Every result byte below `root` by relative path.

    Locks, caches (hidden files), hardware and starts are left out; of metrics and results what a clock decides.
    """
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if not path.is_file() or hidden or path.name in UNCOMPARED or path.name in leave_out:
            continue
        found[name] = _without_clock(path)
    return found


def _without_clock(path: Path) -> bytes:
    if path.name == "metrics.jsonl":
        rows = [strip_clock(json.loads(line)) for line in path.read_text().splitlines()]
        return json.dumps(rows).encode()
    if path.name in ("results.json", "state.json"):
        return json.dumps(strip_clock(json.loads(path.read_text()))).encode()
    if path.name == "manifest.json" and path.parent.name.startswith("step_"):
        manifest = json.loads(path.read_text())
        for entry in manifest["files"]:  # state.json holds elapsed seconds
            if entry["name"] == "state.json":
                entry["sha256"] = entry["bytes"] = None
        return json.dumps(strip_clock(manifest)).encode()
    return path.read_bytes()


def strip_clock(value: Any) -> Any:
    """The value without the fields that a clock decides."""
    if isinstance(value, dict):
        return {k: strip_clock(v) for k, v in value.items() if k not in CLOCK_FIELDS}
    return [strip_clock(v) for v in value] if isinstance(value, list) else value


def differences(clean: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Names of files that differ or are on one side only."""
    return sorted(name for name in {*clean, *other} if clean.get(name) != other.get(name))


def copy(source: Path, target: Path) -> Path:
    """A copy of a folder tree."""
    shutil.copytree(source, target)
    return target


def environment() -> dict[str, str]:
    """Of sub-processes: one thread, no network."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
