"""How much memory this process has used at most since it was last asked."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class MemoryPeak:
    """GiB. resident: of the process in the machine's memory, mapped files included; allocated, reserved: of tensors and
    of torch's allocator on the GPU, None elsewhere."""

    resident: float
    allocated: float | None = None
    reserved: float | None = None


def take_peak(device: torch.device) -> MemoryPeak:
    """The peak since the last call; the resident one since the process began where the system cannot reset it."""
    resident = _resident_bytes() / 2**30
    if device.type != "cuda":
        return MemoryPeak(resident)
    allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    return MemoryPeak(resident, allocated / 2**30, reserved / 2**30)


def _resident_bytes() -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak to what is resident now
        return peak
    except (OSError, ValueError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
