"""What the device at hand decides: where an encoder runs, in which precision, and in batches of what size.

Precision and batch size change the last bits of a vector: they are resolved once, when an embedder is fitted, and kept
in its recipe. Only the device is chosen again wherever the recipe is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from retro.config.errors import ConfigError
from retro.config.prep_embed import TransformerConfig

if TYPE_CHECKING:
    import torch

# A CPU core works fastest on what fits its cache, a GPU on what fills all its cores.
_CPU_BATCH_TOKENS, _CUDA_BATCH_TOKENS = 2048, 65536
_cpu_turn = threading.Lock()


def find_device(name: str) -> torch.device:
    """The device called auto, cpu, cuda or cuda:N. Raises ConfigError for one that is not there."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"device: {name!r} is not here, {count} CUDA devices are; use device=cpu or device=auto")
    return device


def resolve(config: TransformerConfig, device: torch.device) -> TransformerConfig:
    """The configuration with `precision: auto` and `batch_tokens: 0` replaced by what suits the device."""
    precision, batch_tokens = config.precision, config.batch_tokens
    if precision == "auto":
        precision = best_precision(device)
    if batch_tokens == 0:
        batch_tokens = max(_CUDA_BATCH_TOKENS if device.type == "cuda" else _CPU_BATCH_TOKENS, config.max_length)
    return dataclasses.replace(config, precision=precision, batch_tokens=batch_tokens)


def best_precision(device: torch.device) -> Literal["fp32", "bf16"]:
    """bf16 where the device multiplies in it: GPUs from Ampere on, CPUs with AVX512_BF16 or AMX (3 to 4 times faster).

    Elsewhere torch emulates it, slower than fp32.
    """
    import torch

    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        native = any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last one of ARM
    else:  # before torch 2.11
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


@contextlib.contextmanager
def one_thread_per_batch() -> Iterator[int]:
    """Number of batches to compute at a time, each by one thread; torch's own threads rest meanwhile.

    A batch then has the same bits on any number of cores, and no core waits for another inside of it. One caller at a
    time: torch's number of threads is the process's.
    """
    import torch

    with _cpu_turn:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield threads
        finally:
            torch.set_num_threads(threads)


def set_tokenizer_threads() -> None:
    """Let the `tokenizers` package use as many threads as torch may, unless the environment says otherwise.

    It would take all cores in every worker process of a pool.
    """
    import torch

    threads = torch.get_num_threads()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if threads > 1 else "false")
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
