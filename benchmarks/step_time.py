"""Training-step time of RETRO over GPT, interleaved in one process.

    python benchmarks/step_time.py [--bf16] [--rounds 10] [--threads 2] [--compile] [--record]

Three models take one step each in turn (A B C A B C ...), so that noise of the machine hits all alike:

  plain   a self-contained GPT written here, on scaled_dot_product_attention with torch's own cross-entropy;
  gpt     RetroModel without RETRO layers;
  retro   RetroModel with chunked cross-attention at layers 2, 5, 8 and a 2-layer encoder,
          fed as the data set feeds it in training: the neighbors of a sequence's last chunk serve no scored position
          and are masked (`retro_all`, with --all-chunks: all 8 chunks, the last one serving a single position).

Configuration: width 256, 8 layers, 4 heads of 64, GELU, sequence 512 in chunks of 64, 2 neighbors of 128 tokens,
batch 4, vocabulary 16,384, untied, random tokens; forward, backward, AdamW; no data loading. Reported: medians, and
the median of the ratios within a round with its quartiles, of wall time and of CPU time. On a busy machine wall times
mean nothing (rounds in which other processes used more than 0.08 cores are counted, and with fewer than 5 quiet rounds
`wall_is_reliable` is false); the CPU time of a single thread (--threads 1) still does. --record adds the result to
benchmarks/records/step_time.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro.config.model import ModelConfig
from retro.model import RetroModel, count_parameters
from retro.model.flops import sequence_flops

WIDTH, LAYERS, HEADS, HEAD, VOCABULARY = 256, 8, 4, 64, 16384
BATCH, LENGTH, CHUNK, NEIGHBORS, RETRIEVED = 4, 512, 64, 2, 128
CHUNKS = LENGTH // CHUNK
RECORD = Path(__file__).parent / "records" / "step_time.json"

GPT = ModelConfig(
    vocab_size=VOCABULARY,
    width=WIDTH,
    num_layers=LAYERS,
    num_heads=HEADS,
    ffn="gelu",
    rotary_fraction=0.5,
    tie_embeddings=False,
    chunk_length=CHUNK,
)
RETRO = dataclasses.replace(GPT, cross_attention_layers=(2, 5, 8))


class PlainBlock(nn.Module):
    """Pre-norm block with half-rotated heads and GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH, 1e-5), nn.RMSNorm(WIDTH, 1e-5)
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * HEAD, bias=False)
        self.out = nn.Linear(HEADS * HEAD, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned, rest = x[..., : HEAD // 2], x[..., HEAD // 2 :]
        a, b = turned.chunk(2, -1)
        turned = turned * cos.to(x.dtype) + torch.cat((-b, a), -1) * sin.to(x.dtype)
        return torch.cat((turned, rest), -1)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
        q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class PlainGPT(nn.Module):
    """What a user would write: the yardstick for our own GPT."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(PlainBlock() for _ in range(LAYERS))
        self.norm, self.head = nn.RMSNorm(WIDTH, 1e-5), nn.Linear(WIDTH, VOCABULARY, bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        angles = torch.outer(torch.arange(LENGTH).float(), 10000.0 ** (torch.arange(0, HEAD // 2, 2) / -(HEAD // 2)))
        cos, sin = torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()
        for block in self.blocks:
            x = block(x, cos, sin)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


def batches(all_chunks: bool) -> list[dict[str, Tensor]]:
    """Four batches of random tokens; the last chunk's neighbors masked unless `all_chunks`."""
    out = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(1, VOCABULARY, (BATCH, LENGTH + 1), generator=generator)
        neighbors = torch.randint(1, VOCABULARY, (BATCH, CHUNKS, NEIGHBORS, RETRIEVED), generator=generator)
        mask = torch.ones_like(neighbors, dtype=torch.bool)
        mask[:, -1] = all_chunks
        out.append({"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "neighbors": neighbors, "mask": mask})
    return out


def build_step(name: str, bf16: bool, compiled: bool) -> tuple[nn.Module, Callable[[int], float]]:
    """The model and a function that makes training step i and returns its loss."""
    torch.manual_seed(0)
    model: nn.Module = PlainGPT() if name == "plain" else RetroModel(GPT if name == "gpt" else RETRO)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, fused=True)
    data = batches(all_chunks=name == "retro_all")
    run: Any = torch.compile(model) if compiled else model

    def step(i: int) -> float:
        batch = data[i % len(data)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            if name == "plain":
                loss = run(batch["tokens"], batch["targets"])
            elif name == "gpt":
                loss = run(batch["tokens"], targets_BN=batch["targets"]).loss
            else:
                loss = run(batch["tokens"], batch["neighbors"], batch["mask"], targets_BN=batch["targets"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return model, step


def cpu_seconds() -> tuple[float, float]:
    """(busy seconds of the whole machine, CPU seconds of this process); the first is 0 where /proc is not offered."""
    times = os.times()
    try:
        fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except OSError:
        return 0.0, times.user + times.system
    return (sum(fields[:3]) + sum(fields[5:8])) / os.sysconf("SC_CLK_TCK"), times.user + times.system


def measure(names: list[str], rounds: int, warmup: int, bf16: bool, compiled: bool) -> dict[str, Any]:
    models = {name: build_step(name, bf16, compiled) for name in names}
    for i in range(warmup):
        for _, step in models.values():
            step(i)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    foreign = []
    for i in range(rounds):
        busy, own = cpu_seconds()
        start = time.perf_counter()
        for name, (_, step) in models.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            step(i)
            seconds[name].append(time.perf_counter() - begin)
            cpu[name].append(time.process_time() - begin_cpu)
        busy_after, own_after = cpu_seconds()
        foreign.append(max(0.0, (busy_after - busy) - (own_after - own)) / (time.perf_counter() - start))
    quiet = [i for i, load in enumerate(foreign) if load < 0.08]
    used = quiet if len(quiet) >= 5 else list(range(rounds))
    return {
        "rounds": rounds,
        "quiet_rounds": len(quiet),
        "wall_is_reliable": len(quiet) >= 5,
        "median_foreign_load": round(statistics.median(foreign[i] for i in used), 3),
        "models": {name: summary(name, models[name][0], seconds, cpu, used) for name in names},
    }


def summary(
    name: str, model: nn.Module, seconds: dict[str, list[float]], cpu: dict[str, list[float]], used: list[int]
) -> dict[str, Any]:
    out: dict[str, Any] = {
        "parameters": count_parameters(model),
        "median_seconds": round(statistics.median(seconds[name][i] for i in used), 4),
        "median_cpu_seconds": round(statistics.median(cpu[name]), 4),
        "gflop": round(BATCH * flops(name) / 1e9, 1),
    }
    out["tokens_per_second"] = round(BATCH * LENGTH / out["median_seconds"])
    for other in seconds:
        if other != name:
            out[f"ratio_to_{other}"] = {
                "wall": spread([seconds[name][i] / seconds[other][i] for i in used]),
                "cpu": spread([mine / theirs for mine, theirs in zip(cpu[name], cpu[other], strict=True)]),
            }
    return out


def spread(ratios: list[float]) -> dict[str, Any]:
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}


def flops(name: str) -> int:
    """Matrix-product operations of a training step, per sequence."""
    if name in ("plain", "gpt"):
        return sequence_flops(GPT, LENGTH).training
    chunks = CHUNKS if name == "retro_all" else CHUNKS - 1
    return sequence_flops(
        RETRO, LENGTH, retrieved_chunks=chunks, num_neighbors=NEIGHBORS, retrieved_length=RETRIEVED
    ).training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast instead of float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile all models")
    parser.add_argument("--all-chunks", action="store_true", help="also retrieve for the last chunk (model retro_all)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true", help=f"add the result to {RECORD}")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = ["plain", "gpt", "retro"] + (["retro_all"] if arguments.all_chunks else [])
    result = measure(names, arguments.rounds, arguments.warmup, arguments.bf16, arguments.compile)
    key = ("bf16" if arguments.bf16 else "fp32") + ("-compile" if arguments.compile else "")
    result |= {"threads": arguments.threads, "torch": torch.__version__, "machine": platform.machine()}
    print(json.dumps({key: result}, indent=1))
    if not result["wall_is_reliable"]:
        print(f"UNRELIABLE: {result['quiet_rounds']} quiet rounds, at least 5 are needed; do not quote wall times")
    if arguments.record:
        records = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(records | {key: result}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
