"""The two choices of implementation that rest on measurement: short bfloat16 attention, and the cross-entropy's block.

    python benchmarks/kernels.py [--threads 1]

CPU milliseconds (all threads) of forward and backward, the least of several runs, which other load on the machine
disturbs little. Nothing is recorded; the defaults in retro.nn.short_attention and retro.nn.cross_entropy cite it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from retro.nn.cross_entropy import linear_cross_entropy
from retro.nn.short_attention import short_attention


def milliseconds(run: Callable[[], object], repeats: int = 5) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def attention(dtype: torch.dtype) -> None:
    """Self-attention of decoder and encoder, conditioning, chunked cross-attention; 4 heads of 64."""
    for name, sequences, queries, keys, causal in (
        ("encoder self", 56, 128, 128, False),
        ("encoder to chunk", 28, 256, 64, False),
        ("chunked cross", 28, 64, 256, False),
        ("causal 256", 8, 256, 256, True),
        ("causal 512", 4, 512, 512, True),
        ("causal 1024", 2, 1024, 1024, True),
    ):
        q, k, v = (
            torch.randn(sequences, length, 4, 64, dtype=dtype, requires_grad=True) for length in (queries, keys, keys)
        )

        def fused(q: torch.Tensor = q, k: torch.Tensor = k, v: torch.Tensor = v, causal: bool = causal) -> None:
            out = F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=causal
            )
            out.transpose(1, 2).flatten(2).sum().backward()

        def written_out(q: torch.Tensor = q, k: torch.Tensor = k, v: torch.Tensor = v, causal: bool = causal) -> None:
            short_attention(q, k, v, mask=None, causal=causal, dropout=0.0).sum().backward()

        print(f"{name:17} {dtype}: fused {milliseconds(fused):6.1f}  written out {milliseconds(written_out):6.1f}")


def cross_entropy(vocabulary: int, bf16: bool) -> None:
    """2,048 positions of width 256; the plain computation and ours by logits held at a time."""
    hidden = torch.randn(2048, 256, requires_grad=True)
    weight = torch.randn(vocabulary, 256, requires_grad=True)
    targets = torch.randint(0, vocabulary, (2048,))

    def plain() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(F.linear(hidden, weight), targets)
        loss.backward()

    def ours(block: int) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = linear_cross_entropy(hidden, weight, targets, block)[0]
        loss.backward()

    blocks = {f"2^{e}": milliseconds(lambda e=e: ours(2**e // vocabulary), 4) for e in (19, 20, 21, 22, 23, 25)}
    text = "  ".join(f"{name} {ms:4.0f}" for name, ms in blocks.items())
    print(f"vocabulary {vocabulary}, {'bf16' if bf16 else 'fp32'}: plain {milliseconds(plain, 4):4.0f}  {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    for dtype in (torch.bfloat16, torch.float32):
        attention(dtype)
    for vocabulary in (4096, 16384):
        for bf16 in (True, False):
            cross_entropy(vocabulary, bf16)


if __name__ == "__main__":
    main()
