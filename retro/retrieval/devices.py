"""Where an index is searched and trained: a choice of speed alone."""

from __future__ import annotations

from typing import Literal

from retro.config.errors import ConfigError

Engine = Literal["cpu", "faiss-gpu", "torch"]


def choose_engine(device: str, exact: bool) -> Engine:
    """What searches an index on `device`: "auto", "cpu" or "cuda" (also "cuda:0").

    faiss on the GPU where a build with GPU support and a device are present; exact search, which needs no faiss, by
    torch on the GPU; else the CPU. Raises ConfigError for "cuda" where there is no such thing.
    """
    if device == "cpu":
        return "cpu"
    if exact:
        if _torch_has_gpu():
            return "torch"
    elif _faiss_gpus() > 0:
        return "faiss-gpu"
    if device == "auto":
        return "cpu"
    lack = "torch sees no CUDA device" if exact else "faiss sees no GPU (faiss-cpu has none; faiss-gpu does)"
    raise ConfigError(f"device: {device}, but {lack}; set device: auto, or use a machine and a build that have one")


def _torch_has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _faiss_gpus() -> int:
    from retro.retrieval.native import load_faiss

    faiss = load_faiss()
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0
