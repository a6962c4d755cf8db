"""What a run ran on: versions, hardware, source revision. For people who compare runs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from retro import __version__
from retro.artifacts.installation import ask_git
from retro.artifacts.source_code import source_root
from retro.train.distributed import Processes
from retro.train.peak import Peak
from retro.train.sessions import command_line

_PACKAGES = ("torch", "numpy", "accelerate", "safetensors", "sentencepiece", "tokenizers")


def describe_environment(processes: Processes, peak: Peak, code: str) -> dict[str, Any]:
    """JSON-able; what cannot be found out is null. peak: what model FLOPs utilisation is relative to; code: where the
    source is kept."""
    return {
        "command": command_line(),
        "working_directory": os.getcwd(),
        "code": code,
        "retro_pretraining": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "device": _device(processes.device),
        "peak_tflops": float(f"{peak.tflops:.4g}"),
        "peak_source": peak.source,
        "processes": processes.world,
        "threads_per_process": torch.get_num_threads(),
        "git_commit": ask_git(source_root(), "rev-parse", "HEAD"),
        "git_modified": _modified(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _modified() -> bool | None:
    status = ask_git(source_root(), "status", "--porcelain", "--untracked-files=no")
    return None if status is None else status != ""
