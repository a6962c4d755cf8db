"""Memory and time of a step by layout of the processes: copies (DDP), FSDP, hybrid sharding.

    python benchmarks/sharding_memory.py [--processes 2 4] [--width 512] [--layers 8] [--steps 4] [--bf16] [--record]

A RETRO of `width` and `layers` (vocabulary 8,192, chunks of 64, 2 neighbors of 128 tokens) takes `steps` optimizer
steps of one sequence of 128 tokens per process, so that weights and not activations fill the memory; each process is
started anew for every layout (gloo, one thread each). Per process, the largest of all processes, in MiB: weights,
gradients and optimizer state that it holds after a step; the most that torch's allocator held at any time of one more
step (weights, optimizer state and whatever the step makes; DDP also holds its buckets, as large as the gradients); and
the peak of resident memory over what it was after steps of a very small model in the same layout (all code loaded; the
C library keeps memory that was freed, so this says less). Seconds are medians of the steps after the first; processes
share the machine's cores.

--record writes benchmarks/records/sharding_memory.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1]))  # not installed: hardware() of another benchmark

from benchmarks.text_corpus import hardware
from retro.config.model import ModelConfig
from retro.config.model_parts import EncoderConfig
from retro.config.parallel import ParallelConfig
from retro.model.retro import count_parameters
from retro.optim.adamw import build_adamw
from retro.train.distributed import Processes
from retro.train.parallel.placement import build_model

RECORD = Path(__file__).parent / "records" / "sharding_memory.json"
VOCABULARY, LENGTH, CHUNK, NEIGHBORS = 8192, 128, 64, 2
MIB = 2**20


def layouts(world: int) -> dict[str, dict[str, Any]]:
    """Sections `parallel` by name."""
    out: dict[str, dict[str, Any]] = {"ddp": {}, "fsdp": {"strategy": "fsdp"}}
    out["fsdp, kept after forward"] = {"strategy": "fsdp", "reshard_after_forward": False}
    if world % 2 == 0 and world > 2:
        out["hybrid"] = {"strategy": "fsdp", "shard": world // 2}
    return out


def status(name: str) -> float:
    """A line of /proc/self/status in MiB: VmRSS = resident now, VmHWM = at most so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def held(tensors: Any) -> float:
    """MiB of the parts that this process has."""
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors if t is not None]
    return sum(t.numel() * t.element_size() for t in local) / MIB


def work(
    rank: int, world: int, port: int, parallel: dict[str, Any], config: ModelConfig, steps: int, bf16: bool, out: str
) -> None:
    """One process of one layout; writes its figures."""
    sizes = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in sizes.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    from accelerate import Accelerator

    processes = Processes(Accelerator(cpu=True), "bf16" if bf16 else "fp32", ParallelConfig(**parallel))
    Training(dataclasses.replace(config, width=64, num_heads=1, vocab_size=64), processes).take_steps(2)
    before = status("VmRSS")
    training = Training(config, processes)
    seconds = training.take_steps(steps)
    weights, state = held(training.model.parameters()), held(training.state())
    figures = {
        "weights_mib": weights,
        "gradients_mib": training.gradients,
        "optimizer_mib": state,
        "peak_mib": weights + state + peak_of(lambda: training.take_steps(1)),
        "peak_resident_mib": status("VmHWM") - before,
        "step_s": statistics.median(seconds[1:]),
    }
    Path(f"{out}-{rank}.json").write_text(json.dumps(figures))
    processes.wait()


class Training:
    """A model that is trained on one random sequence; gradients: MiB of them after the last step."""

    def __init__(self, config: ModelConfig, processes: Processes) -> None:
        self.processes = processes
        self.model = build_model(config, processes, seed=0).train()
        self.wrapped = processes.wrap(self.model)
        self.optimizer = build_adamw(self.model, learning_rate=1e-4, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
        assert config.vocab_size is not None
        generator = torch.Generator().manual_seed(processes.rank)
        self.tokens = torch.randint(config.vocab_size, (1, LENGTH), generator=generator)
        shape = (1, LENGTH // CHUNK, NEIGHBORS, 2 * CHUNK)
        self.neighbors = torch.randint(config.vocab_size, shape, generator=generator)
        self.gradients = 0.0

    def take_steps(self, steps: int) -> list[float]:
        """Seconds of each."""
        seconds, processes = [], self.processes
        for _ in range(steps):
            started = time.perf_counter()
            with processes.accumulate(self.wrapped, last=True), processes.autocast():
                output = self.wrapped(self.tokens, self.neighbors, targets_BN=self.tokens, reduction="sum")
                output.loss.backward()
                del output
            processes.scale_and_clip(self.model, 1 / LENGTH, 1.0)
            self.optimizer.step()
            self.gradients = held(p.grad for p in self.model.parameters())
            self.optimizer.zero_grad(set_to_none=True)
            seconds.append(time.perf_counter() - started)
        return seconds

    def state(self) -> list[torch.Tensor]:
        """The optimizer's tensors."""
        return [value for state in self.optimizer.state.values() for value in state.values()]


def peak_of(function: Callable[[], object]) -> float:
    """The most MiB that torch's allocator holds at a time during a call, above what it held at its begin."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most / MIB


def measure(world: int, name: str, config: ModelConfig, steps: int, bf16: bool) -> dict[str, float]:
    """The largest figure of all processes, each."""
    import tempfile

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/out"
        arguments = (world, port, layouts(world)[name], config, steps, bf16, out)
        mp.spawn(work, arguments, nprocs=world)  # type: ignore[attr-defined]
        rows = [json.loads(Path(f"{out}-{rank}.json").read_text()) for rank in range(world)]
    return {key: round(max(row[key] for row in rows), 3) for key in rows[0]}


def main() -> None:
    """Measure all layouts, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    config = ModelConfig(
        vocab_size=VOCABULARY,
        width=options.width,
        num_layers=options.layers,
        num_heads=options.width // 64,
        chunk_length=CHUNK,
        cross_attention_layers=tuple(range(options.layers // 2, options.layers + 1, 3)),
        encoder=EncoderConfig(num_layers=2),
    )
    from retro.model.retro import RetroModel

    with torch.device("meta"):
        parameters = count_parameters(RetroModel(config))
    print(f"{parameters:,} parameters, {'bf16' if options.bf16 else 'fp32'}", flush=True)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for world in options.processes:
        results[str(world)] = {}
        for name in layouts(world):
            found = measure(world, name, config, options.steps, options.bf16)
            results[str(world)][name] = found
            print(f"{world} processes, {name:26s} {found}", flush=True)
    if options.record:
        record = {
            "hardware": hardware(),
            "torch": torch.__version__,
            "arguments": {
                "width": options.width,
                "layers": options.layers,
                "steps": options.steps,
                "bf16": options.bf16,
            },
            "parameters": parameters,
            "results": results,
        }
        RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
