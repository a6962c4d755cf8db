"""Cores and GPUs of this machine, and which of the GPUs a worker is given."""

from __future__ import annotations

import os
from pathlib import Path

_DRIVER = Path("/proc/driver/nvidia/gpus")


def usable_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them. No CUDA library is loaded."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [name.strip() for name in allowed.split(",") if name.strip() not in ("", "-1")]
    try:
        return [str(number) for number in range(len(list(_DRIVER.iterdir())))]
    except OSError:
        return []


def gpus_of_worker(worker: int, per_worker: int, gpus: list[str]) -> list[str] | None:
    """GPUs of the worker with that number, dealt round in turn; None: it sees what the machine shows.

    A stage that uses no GPU is not restricted, and neither is one on a machine without any.
    """
    if per_worker <= 0 or not gpus:
        return None
    return list(dict.fromkeys(gpus[(worker * per_worker + i) % len(gpus)] for i in range(per_worker)))
