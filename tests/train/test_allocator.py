"""Freed memory stays with the process: asked of the system once, not in every step."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import resource, sys
import torch
from retro.train.allocator import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(77)

def touch():
    for size in (2**22, 2**23, 2**24):  # 16, 32 and 64 MiB of float32
        torch.ones(size).add(1.0)

counts = []
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    touch()
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(counts), max(counts))
"""


def _page_faults(mode: str) -> tuple[int, int]:
    """The fewest and the most of a round: freed blocks lie otherwise in every process, so that the heap grows in some
    rounds (and a machine short of memory takes pages away), but a round without any needs memory that was kept."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM, mode], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("the C library is not glibc")
    assert done.returncode == 0, done.stderr
    fewest, most = done.stdout.split()
    return int(fewest), int(most)


def test_freed_blocks_are_used_again():
    assert _page_faults("keep")[0] < 100
    assert _page_faults("default")[0] > 1000  # 112 MiB that was given back; or else the test says nothing


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch):
    from retro.train import allocator

    monkeypatch.setattr(sys, "platform", "darwin")
    assert allocator.keep_freed_memory() is False
