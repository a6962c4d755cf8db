"""Rotation, normalisation, key smearing, attention and the arithmetic of chunks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from retro.nn.attention import KeySmear, attend
from retro.nn.chunked_cross_attention import (
    add_query_blocks,
    count_chunks,
    count_complete_chunks,
    cut_chunks,
    cut_query_blocks,
)
from retro.nn.feed_forward import FeedForward
from retro.nn.norm import LayerNorm, RMSNorm
from retro.nn.rotary import RotaryTable, rotary_table, rotate
from retro.nn.short_attention import short_attention

CPU = torch.device("cpu")


def positions(length: int, width: int) -> RotaryTable:
    return rotary_table(length, width, 100.0, CPU, torch.float64)


@pytest.mark.parametrize("width", [8, 4])
def test_scores_depend_on_distance_only(width: int) -> None:
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    table = positions(20, width)

    def score(p: int, q: int) -> float:
        return float((rotate(query, table.rows(p, p + 1)) * rotate(key, table.rows(q, q + 1))).sum())

    assert score(3, 1) == pytest.approx(score(12, 10), abs=1e-12)
    assert score(1, 3) == pytest.approx(score(17, 19), abs=1e-12)
    assert abs(score(3, 1) - score(1, 3)) > 1e-3
    assert abs(score(3, 1) - score(4, 1)) > 1e-3


def test_rotation_keeps_length_and_the_unrotated_part() -> None:
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = rotate(x, positions(5, 4))
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(y[..., 4:], x[..., 4:])
    assert torch.equal(y[:, 0], x[:, 0])
    assert not torch.equal(y[:, 1, :, :4], x[:, 1, :, :4])


def test_rotation_of_long_positions_is_exact_in_float32() -> None:
    """Angles in float32 at position 4,000 still agree with float64 to what the position's own rounding allows."""
    single = rotary_table(4001, 64, 10000.0, CPU, torch.float32).rows(4000, 4001)
    double = rotary_table(4001, 64, 10000.0, CPU, torch.float64).rows(4000, 4001)
    assert (single.cos.double() - double.cos).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rmsnorm_equals_torch(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = RMSNorm(16, 1e-3).to(dtype)
    with torch.no_grad():
        norm.weight.normal_(generator=generator)
    x = torch.randn(3, 5, 16, dtype=dtype, generator=generator, requires_grad=True)
    y = torch.randn(3, 5, 16, dtype=dtype, generator=generator)
    ours = torch.autograd.grad((norm(x) * y).sum(), (x, norm.weight))
    theirs = torch.autograd.grad((F.rms_norm(x, (16,), norm.weight, 1e-3) * y).sum(), (x, norm.weight))
    torch.testing.assert_close(norm(x), F.rms_norm(x, (16,), norm.weight, 1e-3))
    torch.testing.assert_close(ours, theirs)


def test_rmsnorm_of_bfloat16_is_computed_in_float32() -> None:
    norm = RMSNorm(16, 1e-5)
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x).float(), norm(x.float()), rtol=8e-3, atol=8e-3)
    weights_too = RMSNorm(16, 1e-5).bfloat16()
    out = weights_too(x.clone().requires_grad_())
    out.sum().backward()
    assert weights_too.weight.grad.dtype == torch.bfloat16


def test_layernorm_bias_is_optional() -> None:
    assert [n for n, _ in LayerNorm(4, 1e-5, bias=False).named_parameters()] == ["weight"]
    assert [n for n, _ in LayerNorm(4, 1e-5, bias=True).named_parameters()] == ["weight", "bias"]


def test_key_smear() -> None:
    smear = KeySmear(2)
    keys = torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        smear.weight.copy_(torch.tensor([0.0, 100.0]))
        out = smear(keys)
    assert torch.allclose(out[:, 0], keys[:, 0])
    assert torch.allclose(out[:, 1:, 0], (keys[:, 1:, 0] + keys[:, :-1, 0]) / 2)
    assert torch.allclose(out[:, :, 1], keys[:, :, 1])


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("masking", ["none", "causal", "keys", "full"])
def test_short_attention_equals_fused(kv_heads: int, masking: str) -> None:
    """The two implementations behind `attend`, in float64, where only `attend` itself would choose the fused one."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(3, 6, 4, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    keys, values = (
        torch.randn(3, 6, kv_heads, 8, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2)
    )
    mask = None
    if masking == "keys":
        mask = (torch.rand(3, 1, 1, 6, generator=generator) > 0.5) | (torch.arange(6) == 2)
    elif masking == "full":
        mask = (torch.rand(3, 4, 6, 6, generator=generator) > 0.5) | torch.eye(6, dtype=torch.bool)
    out, expected = (
        f(queries, keys, values, mask=mask, causal=masking == "causal", dropout=0.0) for f in (short_attention, attend)
    )
    torch.testing.assert_close(out, expected)
    weights = torch.randn(out.shape, dtype=torch.float64, generator=generator)
    for ours, theirs in zip(
        torch.autograd.grad((out * weights).sum(), (queries, keys, values)),
        torch.autograd.grad((expected * weights).sum(), (queries, keys, values)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_short_attention_applies_dropout() -> None:
    x = torch.randn(2, 6, 2, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    a, b = (short_attention(x, x, x, mask=None, causal=False, dropout=p) for p in (0.5, 0.0))
    assert not torch.allclose(a, b)


def served(length: int, chunk: int, first: int) -> str:
    """For each position the chunk whose neighbors it sees, - for none, by way of the cutting functions."""
    rows = count_complete_chunks(length, chunk, first)
    x = torch.zeros(1, length, 1)
    blocks = torch.arange(1, rows + 1).repeat_interleave(chunk).view(rows, chunk, 1).float()
    return "".join("-" if v == 0 else str(int(v) - 1) for v in add_query_blocks(x, blocks, first)[0, :, 0])


@pytest.mark.parametrize(
    ("length", "expected"),
    [(8, "---00001"), (12, "---000011112"), (7, "--00001"), (5, "00001"), (3, "--0")],
)
def test_served_positions_of_the_paper(length: int, expected: str) -> None:
    """The checked mapping of docs/concepts.md, M = 4 and right-aligned chunks."""
    assert served(length, 4, (length - 1) % 4 + 1) == expected


def test_cut_chunks_and_blocks() -> None:
    x = torch.arange(1, 10).view(1, 9, 1)
    assert cut_chunks(x, 2, 4, 4)[..., 0].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert cut_chunks(x, 3, 4, 1)[..., 0].tolist() == [[0, 0, 0, 1], [2, 3, 4, 5], [6, 7, 8, 9]]
    assert cut_query_blocks(x, 2, 4, 4)[..., 0].tolist() == [[4, 5, 6, 7], [8, 9, 0, 0]]
    assert cut_query_blocks(x, 3, 4, 1)[..., 0].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 0, 0, 0]]


@pytest.mark.parametrize("first", [1, 2, 3, 4])
@pytest.mark.parametrize("length", range(1, 14))
def test_chunk_counts(length: int, first: int) -> None:
    """Against counting chunk by chunk."""
    ends = [first - 1 + 4 * u for u in range(10)]
    assert count_complete_chunks(length, 4, first) == sum(end < length for end in ends)
    assert count_chunks(length, 4, first) == 1 + sum(end < length - 1 for end in ends)


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "swiglu"])
def test_recomputed_activations_change_no_bit_and_keep_less(kind: str) -> None:
    results, kept = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        block = FeedForward(8, 32, kind, bias=True, recompute=recompute)
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter)
        x, sizes = torch.randn(5, 8, requires_grad=True), []

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = block(x)
        out.sum().backward()
        results.append([out.detach(), x.grad, *(p.grad for p in block.parameters())])
        kept.append(sum(sizes))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert kept[1] < kept[0]
