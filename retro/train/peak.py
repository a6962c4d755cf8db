"""The most operations per second that a process' device can do: what model FLOPs utilisation is relative to.

Known GPUs are looked up, by the vendors' data sheets. Everything else is measured once by a few matrix products in the
run's precision, on the threads of this process: then 100 % is what torch itself reaches here, not what is printed on
the box.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Literal

import torch

#: Dense TFLOP/s by a part of the name that torch gives a GPU; the first that fits. bf16 on tensor cores, without
#: sparsity; fp32 without tensor cores (TF32 is another precision).
KNOWN_GPUS: tuple[tuple[str, dict[str, float]], ...] = (
    ("B200", {"bf16": 2250.0, "fp32": 80.0}),
    ("GH200", {"bf16": 989.4, "fp32": 66.9}),
    ("H200 NVL", {"bf16": 835.5, "fp32": 60.0}),
    ("H200", {"bf16": 989.4, "fp32": 66.9}),
    ("H100 NVL", {"bf16": 835.5, "fp32": 60.0}),
    ("H100 PCIe", {"bf16": 756.0, "fp32": 51.2}),
    ("H100", {"bf16": 989.4, "fp32": 66.9}),
    ("A100", {"bf16": 312.0, "fp32": 19.5}),
    ("A30", {"bf16": 165.0, "fp32": 10.3}),
    ("A40", {"bf16": 149.7, "fp32": 37.4}),
    ("L40S", {"bf16": 362.05, "fp32": 91.6}),
    ("L40", {"bf16": 181.05, "fp32": 90.5}),
    ("L4", {"bf16": 121.0, "fp32": 30.3}),
    ("RTX 4090", {"bf16": 165.2, "fp32": 82.6}),
    ("RTX 3090", {"bf16": 71.0, "fp32": 35.6}),
    ("RTX A6000", {"bf16": 154.8, "fp32": 38.7}),
)

# A product that takes less says little; so many are timed after that.
_LEAST_SECONDS, _REPEATS, _LARGEST = 0.01, 5, 16384


@dataclass(frozen=True)
class Peak:
    """tflops: 10^12 operations per second of one process' device; source: `configuration` (peak_tflops), `table`
    (of the device's name) or `measured`."""

    tflops: float
    source: Literal["configuration", "table", "measured"]


def device_peak(device: torch.device, precision: Literal["fp32", "bf16"], configured: float | None = None) -> Peak:
    """The peak of `device` in the precision of the run: `configured` TFLOP/s, or of the table, or measured now (some
    tenths of a second, once per process)."""
    if configured is not None:
        return Peak(configured, "configuration")
    if device.type == "cuda":
        known = known_gpu(torch.cuda.get_device_name(device), precision)
        if known is not None and (precision == "bf16" or torch.get_float32_matmul_precision() == "highest"):
            return Peak(known, "table")
    return Peak(_measured(device, precision, torch.get_num_threads()), "measured")


def known_gpu(name: str, precision: Literal["fp32", "bf16"]) -> float | None:
    """TFLOP/s of the GPU with the name that torch gives it; None if it is not in the table."""
    words = name.replace("-", " ").split()
    for known, peaks in KNOWN_GPUS:
        parts = known.split()
        if any(words[i : i + len(parts)] == parts for i in range(len(words))):
            return peaks[precision]
    return None


@functools.cache
def _measured(device: torch.device, precision: str, threads: int) -> float:
    """The fastest of a few square products; `threads` is part of the key only."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    # Its own stream: the run's must not move. Random numbers, since some GPUs are faster with equal ones.
    random = torch.Generator(device).manual_seed(0)
    size = 256
    while True:
        a, b = (torch.rand(size, size, generator=random, device=device).to(dtype) for _ in range(2))
        _seconds(a, b)  # the first call of a shape sets things up
        seconds = _seconds(a, b)
        if seconds >= _LEAST_SECONDS or size == _LARGEST:
            break
        size *= 2
    best = min([seconds, *(_seconds(a, b) for _ in range(_REPEATS))])
    return 2 * size**3 / best / 1e12


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    started = time.perf_counter()
    # Something of the product is read, so that it is finished on a device that works asynchronously.
    float((a @ b)[0, 0])
    return time.perf_counter() - started
