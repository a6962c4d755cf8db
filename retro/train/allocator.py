"""Keeps freed memory in the process while training on a CPU.

A training step frees and asks for the same large blocks over and over. glibc gives blocks above 32 MiB at the latest,
and the end of its heap, back to the system, which hands them out again page by page, zeroed: 20,000 to 90,000 page
faults per step of RETRO at the size of benchmarks/step_time.py, none in the smaller GPT, and up to a tenth of the time.
"""

from __future__ import annotations

import ctypes
import sys

# Of <malloc.h>; mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Tell glibc never to give memory back to the system before the process ends. Returns False, and does nothing,
    where the C library is another one (or another allocator has taken its place, which has means of its own).

    No result changes. What is freed stays with the process, and because blocks of other sizes lie between what can be
    used again, its resident memory may exceed the most that was in use at a time.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version.restype = ctypes.c_char_p
        library.gnu_get_libc_version()
        mallopt = library.mallopt
    except (OSError, AttributeError):
        return False
    # Large blocks from the heap, where they can be used again, instead of from mmap; and no end of the heap given back.
    return mallopt(_M_MMAP_MAX, 0) == 1 and mallopt(_M_TRIM_THRESHOLD, -1) == 1
