"""How long training stands still for an asynchronous checkpoint, against a blocking one of the same state.

    python benchmarks/async_checkpoint.py [--rounds 7] [--width 768 --layers 12 --vocabulary 32000] [--threads 2]
                                          [--folder DIR] [--record]

A GPT of 12 layers of width 768 (110 M parameters, 1.3 GB of weights and AdamW state) in one process, fp32, steps over 1
sequence of 128 random tokens. Every round, after a `sync` of the disk:

  alone       a few training steps, nothing else going on
  blocking    `save_checkpoint`: files, checksums, flushed to the disk, manifest, name, deletion of the one before
  stall       `take_snapshot` into memory and the start of the thread: what an asynchronous checkpoint costs training
  behind      training steps while the thread writes, until it has ended (`written`: seconds for that)
  lost        stall, and by how much the steps behind were longer than as many alone: all that training loses

The first asynchronous checkpoint of a run touches its buffers for the first time: `first_stall`. Reported: medians with
quartiles; the claim is stall / blocking < 10 %. 5 minutes on 2 quiet cores; needs 6 GB of memory and 4 GB in DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.text_corpus import hardware
from retro.config.model import ModelConfig
from retro.model import RetroModel
from retro.model.retro import count_parameters
from retro.optim.adamw import build_adamw
from retro.train.checkpointing.background import BackgroundSave
from retro.train.checkpointing.identity import Identity
from retro.train.checkpointing.save import Resumed, Retention, save_checkpoint, take_snapshot, write_snapshot
from retro.train.checkpointing.staging import Staging
from retro.train.state import TrainState

RECORD = Path(__file__).parent / "records" / "async_checkpoint.json"
IDENTITY = Identity({"sequence_length": 128, "num_neighbors": 1, "packing": "chunks"}, "release", "tokenizer")
TOKENS, LIMIT = 128, 0.10


class Run:
    """A model in training."""

    def __init__(self, width: int, layers: int, vocabulary: int) -> None:
        torch.manual_seed(0)
        config = ModelConfig(
            vocab_size=vocabulary, width=width, num_layers=layers, num_heads=max(1, width // 64), chunk_length=64
        )
        self.model = RetroModel(config)
        self.optimizer = build_adamw(self.model, learning_rate=1e-5, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
        self.tokens = torch.randint(0, vocabulary, (1, TOKENS))
        self.number = 0

    def step(self) -> float:
        """One training step; its seconds."""
        begin = time.perf_counter()
        self.model(self.tokens, targets_BN=self.tokens, reduction="mean").loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - begin

    def resumed(self) -> Resumed:
        """The rest of the next checkpoint."""
        self.number += 1
        return Resumed(TrainState(self.number), {"cpu": torch.get_rng_state()[None]}, {})


def measure_round(run: Run, folder: Path, staging: Staging, steps: int) -> dict[str, float]:
    """Seconds of one round."""
    os.sync()
    alone = [run.step() for _ in range(steps)]
    os.sync()
    begin = time.perf_counter()
    save_checkpoint(folder, model=run.model, optimizer=run.optimizer, resumed=run.resumed(), identity=IDENTITY, keep=1)
    blocking = time.perf_counter() - begin
    os.sync()
    begin = time.perf_counter()
    snapshot = take_snapshot(run.model, run.optimizer, run.resumed(), staging=staging)
    saving = BackgroundSave(lambda: write_snapshot(folder, snapshot, IDENTITY, Retention(1)))
    stall = time.perf_counter() - begin
    behind = []
    while not saving.is_done:
        behind.append(run.step())
    written = time.perf_counter() - begin
    saving.wait()
    step = statistics.median(alone)
    return {
        "alone": step,
        "blocking": blocking,
        "stall": stall,
        "behind": statistics.median(behind),
        "written": written,
        "lost": stall + sum(behind) - len(behind) * step,
    }


def summarise(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)]}


def main() -> None:
    """Measure and print; exit code 1 if the claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="steps alone, per round")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", help="on the disk to be measured; default: the system's temporary folder")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run = Run(arguments.width, arguments.layers, arguments.vocabulary)
    staging = Staging()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        folder = Path(place) / "checkpoints"
        for _ in range(3):
            run.step()
        first = measure_round(run, folder, staging, arguments.steps)["stall"]
        rounds = []
        for number in range(arguments.rounds):
            rounds.append(measure_round(run, folder, staging, arguments.steps))
            print(f"{number + 1}: " + ", ".join(f"{k} {v:.3f} s" for k, v in rounds[-1].items()), flush=True)
        size = sum(file.stat().st_size for file in folder.glob("step_*/*"))
    seconds = {name: summarise([entry[name] for entry in rounds]) for name in rounds[0]}
    ratios = {
        "stall_over_blocking": summarise([entry["stall"] / entry["blocking"] for entry in rounds]),
        "lost_over_blocking": summarise([entry["lost"] / entry["blocking"] for entry in rounds]),
        "step_behind_over_alone": summarise([entry["behind"] / entry["alone"] for entry in rounds]),
    }
    holds = ratios["stall_over_blocking"]["median"] < LIMIT
    result: dict[str, Any] = {
        "hardware": hardware("torch", "safetensors"),
        "parameters": count_parameters(run.model),
        "checkpoint_bytes": size,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "seconds": seconds,
        "first_stall": round(first, 4),
        "ratios": ratios,
        "claim": {"stall_over_blocking_below": LIMIT, "holds": holds},
    }
    print(json.dumps(result, indent=1))
    if arguments.record:
        RECORD.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
