"""What the training loop costs beside the model: over a bare torch loop, and with two processes over one.

    python benchmarks/training_loop.py [--threads 2] [--steps 30] [--bf16] [--models gpt retro] [--record]
    python benchmarks/training_loop.py --scaling [--rounds 5] [--steps 12] [--models gpt retro] [--record]

The model is that of benchmarks/step_time.py (width 256, 8 layers, 512 tokens, chunks of 64, 2 neighbors of 128) with a
vocabulary of 300, the text is random, the batch is 4 sequences per process.

Loop: `retro train` itself (retro.train.run.train: data set and loader over memory-mapped files, loss over all
processes, clipping, checks for finite numbers, schedule, metrics, progress, utilisation; a checkpoint at the end only)
against a loop of ten lines over batches that lie ready as tensors: forward, backward, torch's clip_grad_norm_, fused
AdamW, loss read once per step. Both train the same configuration in one process, one step each in turn, so noise of the
machine hits both alike. Reported: medians, and the median of the ratios of neighboring steps with its quartiles;
`quiet` counts pairs during which other processes used at most 0.08 cores.

Scaling: runs of one process and of two (DDP, gloo, through `retro launch`), one thread and 4 sequences each, in turn.
Efficiency = tokens per second of two / (2 x tokens per second of one), of the runs' own logs, first steps left out. Two
processes share the machine's caches and memory bandwidth, so part of what is lost is not the loop's: `apart` is the
same figure for two single processes that run at once and know nothing of each other.

--record adds the result to benchmarks/records/training_loop.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the builders of the tests are not installed

from benchmarks.step_models import BATCH, CHUNK, LENGTH, NEIGHBORS, OURS
from benchmarks.text_corpus import hardware
from retro.artifacts.release import Split, write_release
from retro.config.loader import from_dict, to_dict
from retro.config.train import TrainConfig
from retro.model import RetroModel
from retro.train import assembly, run
from retro.train.callbacks.base import Callback
from retro.train.state import StepRecord
from retro.train.trainer import Trainer
from tests.data import builders

RECORD = Path(__file__).parent / "records" / "training_loop.json"
WARM_UP, QUIET = 3, 0.08
DOCUMENTS, DOCUMENT_LENGTH = 400, 1200


def build_release(root: Path) -> Path:
    """A release of random text with two neighbors for every chunk."""
    tokenizer = builders.write_real_tokenizer(root / "tokenizer", 300)
    (root / "documents").mkdir()
    documents = builders.write_artifact(root / "documents", "documents", {}, {}, [])
    splits = {}
    for number, (name, count) in enumerate((("train", DOCUMENTS), ("valid", 8))):
        generator = np.random.default_rng(number)
        texts = [generator.integers(4, 300, DOCUMENT_LENGTH).tolist() for _ in range(count)]
        names = f"{name}-{{}}"
        tokens = builders.write_tokens(root / f"tokens-{name}", [texts], tokenizer, vocab_size=300, names=names)
        chunks = builders.write_chunks(root / f"chunks-{name}", tokens, CHUNK)
        if name == "train":
            database = (tokens, chunks)
            table = builders.random_neighbors(chunks, 20, 0.0, 0)
        else:
            rows = len(np.load(chunks / "starts-00000.npy"))
            table = generator.integers(0, len(np.load(database[1] / "starts-00000.npy")), (rows, NEIGHBORS))
        neighbors = builders.write_neighbors(root / f"neighbors-{name}", chunks, database[1], table)
        splits[name] = Split(tokens, chunks, neighbors)
    path = root / "release.json"
    write_release(
        path,
        tokenizer=tokenizer,
        documents=documents,
        database_tokens=database[0],
        database_chunks=database[1],
        searcher=None,
        splits=splits,
    )
    return path


def settings(
    release: Path, root: Path, model: str, name: str, steps: int, processes: int, bf16: bool
) -> dict[str, Any]:
    """A run's configuration, as in a file."""
    described = {k: v for k, v in to_dict(OURS[model]).items() if k != "vocab_size"}
    return {
        "name": name,
        "release": str(release),
        "run_root": str(root),
        "model": described,
        "sequence_length": LENGTH,
        "num_neighbors": NEIGHBORS,
        "global_batch": BATCH * processes,
        "micro_batch": BATCH,
        "steps": steps,
        "warmup_steps": 1,
        "learning_rate": 3e-4,
        "min_learning_rate": 3e-5,
        "precision": "bf16" if bf16 else "fp32",
        "device": "cpu",
        "validate_every": 0,
        "checkpoint_every": 0,
        "log_every": 1,
    }


class Bare:
    """The loop that a user would write, over tensors that lie ready."""

    def __init__(self, trainer: Trainer, bf16: bool) -> None:
        torch.manual_seed(0)
        self.model, self.bf16 = RetroModel(trainer.model.config).train(), bf16
        decay = [p for p in self.model.parameters() if p.ndim > 1]
        rest = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=True)
        data = trainer.loader.dataset
        self.batches = [data.__getitems__(list(range(i, i + BATCH))).to_torch() for i in range(0, 8 * BATCH, BATCH)]

    def step(self, i: int) -> float:
        """One optimizer step."""
        batch = self.batches[i % len(self.batches)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.model(
                batch.tokens_BN,
                batch.neighbors_BLKR,
                batch.neighbor_mask_BLKR,
                targets_BN=batch.targets_BN,
                loss_mask_BN=batch.loss_mask_BN,
            ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


class Interleave(Callback):
    """Takes a step of the bare loop after every step of the run, and times both."""

    name = "interleave"

    def __init__(self, bf16: bool) -> None:
        self.bf16 = bf16
        self.pairs: list[tuple[float, float, float]] = []
        self._bare: Bare | None = None
        self._left = (0.0, 0.0)

    def on_start(self, trainer: Trainer) -> None:
        """Build the other loop."""
        self._bare = Bare(trainer, self.bf16)
        self._left = (time.perf_counter(), _foreign_seconds())

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """The run's step ends here; the next begins when this returns."""
        assert self._bare is not None
        now = time.perf_counter()
        ours = now - self._left[0]
        self._bare.step(record.state.step)
        end, foreign = time.perf_counter(), _foreign_seconds()
        self.pairs.append((ours, end - now, (foreign - self._left[1]) / (end - self._left[0])))
        self._left = (end, foreign)


def _foreign_seconds() -> float:
    """CPU seconds that other processes of the machine have used since it started; 0 where that is not told."""
    try:
        ticks = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0.0
    busy = sum(ticks) - ticks[3] - ticks[4]
    return busy / os.sysconf("SC_CLK_TCK") - sum(os.times()[:2])


def measure_loop(release: Path, root: Path, model: str, steps: int, bf16: bool) -> dict[str, Any]:
    """Ratios of `retro train` over the bare loop."""
    interleave = Interleave(bf16)
    build = assembly.build_callbacks

    def with_interleave(*arguments: Any, **options: Any) -> list[Callback]:
        return [*build(*arguments, **options), interleave]

    assembly.build_callbacks = with_interleave
    try:
        values = settings(release, root, model, f"loop-{model}", steps + WARM_UP, 1, bf16)
        run.train(from_dict(TrainConfig, values))
    finally:
        assembly.build_callbacks = build
    pairs = interleave.pairs[WARM_UP:-1]  # the last step is followed by the checkpoint
    quiet = [pair for pair in pairs if pair[2] <= QUIET]
    return {
        "steps": len(pairs),
        "quiet": len(quiet),
        "retro_train_s": round(statistics.median(p[0] for p in pairs), 4),
        "bare_s": round(statistics.median(p[1] for p in pairs), 4),
        "ratio": _quartiles([p[0] / p[1] for p in pairs]),
        "ratio_quiet": _quartiles([p[0] / p[1] for p in quiet]) if len(quiet) >= 5 else None,
    }


def _quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, (25, 50, 75))
    return {"median": round(float(middle), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def measure_scaling(release: Path, root: Path, model: str, rounds: int, steps: int, bf16: bool) -> dict[str, Any]:
    """Tokens per second of one process, of two that train together, and of two that only run at once."""
    rates: dict[str, list[float]] = {"one": [], "ddp": [], "apart": []}
    for number in range(rounds):
        for kind in rates:
            processes = 2 if kind == "ddp" else 1
            runs = []
            for copy in range(2 if kind == "apart" else 1):
                name = f"{kind}-{model}-{number}-{copy}"
                values = settings(release, root, model, name, steps + WARM_UP, processes, bf16)
                file = root / f"{name}.json"
                file.write_text(json.dumps(values))
                command = [sys.executable, "-m", "launch", "configs/launch/local.yaml", f"processes={processes}"]
                command += ["threads_per_process=1", "--", "retro", "train", str(file)]
                process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL)
                runs.append((name, process))
            for name, process in runs:
                if process.wait() != 0:
                    raise SystemExit(f"{name}: the run failed")
            rates[kind].append(sum(_rate(root / name) for name, _ in runs))
    return {
        "rounds": rounds,
        "tokens_per_s": {kind: _quartiles(values) for kind, values in rates.items()},
        "efficiency": _quartiles([two / (2 * one) for one, two in zip(rates["one"], rates["ddp"], strict=True)]),
        "apart": _quartiles([two / (2 * one) for one, two in zip(rates["one"], rates["apart"], strict=True)]),
        "of_apart": _quartiles([two / apart for two, apart in zip(rates["ddp"], rates["apart"], strict=True)]),
    }


def _rate(folder: Path) -> float:
    """Median tokens per second of a run's steps after the first ones."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["tokens_per_s"] for row in rows[WARM_UP:] if row["event"] == "train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["gpt", "retro"], choices=list(OURS))
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {}
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            release = build_release(root)
            if options.scaling:
                steps = options.steps or 12
                result[model] = measure_scaling(release, root, model, options.rounds, steps, options.bf16)
            else:
                result[model] = measure_loop(release, root, model, options.steps or 30, options.bf16)
        print(model, json.dumps(result[model], indent=1))
    if options.record:
        record = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
        key = f"{'scaling' if options.scaling else 'loop'}_{'bf16' if options.bf16 else 'fp32'}"
        threads = 1 if options.scaling else options.threads
        record[key] = {"hardware": hardware("torch", "numpy"), "threads_per_process": threads, "models": result}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
