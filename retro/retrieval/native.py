"""The one place that loads faiss: with the right environment, and after torch.

Both libraries bring an OpenMP runtime. Loaded after torch, faiss binds to torch's; loaded before it, two pools of
spinning threads fight and small searches become tens of times slower. faiss' bundled OpenBLAS also mistakes newer
AVX-512 processors for older ones unless told; both settings must stand in the environment before the libraries load.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from retro.config.errors import ConfigError


def prepare_environment() -> None:
    """Set the variables that OpenMP and OpenBLAS read when they are loaded; values set by the user stay."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if _has_avx512():
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")


def load_faiss() -> Any:
    """The module faiss. Raises ConfigError, saying what to install, where it is absent."""
    prepare_environment()
    if "faiss" not in sys.modules:
        import torch  # noqa: F401 - before faiss: one OpenMP runtime for both
    try:
        import faiss
    except ImportError:
        raise ConfigError(
            "this index needs faiss, which is not installed; install it with `pip install 'retro-pretraining[faiss]'` "
            "(faiss-cpu, or faiss-gpu on a machine with an NVIDIA driver), or set factory: exact, which needs no faiss"
        ) from None
    return faiss


def usable_threads() -> int:
    """OMP_NUM_THREADS where it is set (workers of a pool share the cores by it), else the cores of this process."""
    try:
        return max(1, int(os.environ.get("OMP_NUM_THREADS", "")))
    except ValueError:
        pass
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _has_avx512() -> bool:
    try:
        from numpy._core._multiarray_umath import __cpu_features__ as features
    except ImportError:  # an internal name of numpy: without it only speed is lost
        return False
    return bool(features.get("AVX512_SKX"))
