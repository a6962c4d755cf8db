"""What may influence what, bit for bit: later tokens, the neighbors of each chunk, padding, other sequences."""

from __future__ import annotations

import pytest
import torch

from retro.nn.chunked_cross_attention import count_complete_chunks
from tests.model.builders import TINY, K, M, R, V, random_tokens, scrambled, suffix_mask, tiny

VARIANTS = [TINY, tiny(smear_keys=True, qk_norm=True, num_kv_heads=1), tiny(norm="layernorm", ffn="gelu", bias=True)]


@pytest.mark.parametrize("config", VARIANTS, ids=["plain", "smear", "layernorm"])
@pytest.mark.parametrize("length", [7, 12])
def test_no_token_sees_a_later_one(config, length) -> None:
    """The chunking is held fixed; every position is changed in turn."""
    model = scrambled(config, dtype=torch.float32)
    tokens = random_tokens(2, length, seed=1)
    neighbors, mask = random_tokens(2, 2, K, R, seed=2), torch.ones((2, 2, K, R), dtype=torch.bool)
    with torch.no_grad():
        before = model(tokens, neighbors, mask).logits
        for p in range(length):
            changed = tokens.clone()
            changed[:, p] = (changed[:, p] + 1) % V
            after = model(changed, neighbors, mask).logits
            assert torch.equal(before[:, :p], after[:, :p]), f"position {p} influences an earlier one"
            assert not torch.equal(before[:, p], after[:, p])


@pytest.mark.parametrize("first", [None, 1, 2, M])
@pytest.mark.parametrize("length", [6, 9, 12])
def test_neighbors_of_a_chunk_serve_from_its_last_token_on(length: int, first: int | None) -> None:
    """Changing the neighbors of chunk u moves position f - 1 + u M first ((u + 1) M - 1 when M divides N), of its own
    sequence only, and moves that position in fact."""
    model = scrambled(TINY, dtype=torch.float32)
    effective = first or (length - 1) % M + 1
    rows = count_complete_chunks(length, M, effective)
    tokens, neighbors = random_tokens(2, length, seed=1), random_tokens(2, rows, K, R, seed=2)
    mask = suffix_mask(2, rows, seed=3)
    mask[..., 0] = True
    with torch.no_grad():
        before = model(tokens, neighbors, mask, first_chunk_length=first).logits
        for u in range(rows):
            changed = neighbors.clone()
            changed[0, u] = (changed[0, u] + 1) % V
            after = model(tokens, changed, mask, first_chunk_length=first).logits
            start = effective - 1 + u * M
            assert torch.equal(before[0, :start], after[0, :start])
            assert torch.equal(before[1], after[1])
            assert not torch.equal(before[0, start], after[0, start])


def test_later_chunks_see_earlier_neighbors_only_through_the_decoder() -> None:
    """With one RETRO layer on top, the neighbors of chunk u move positions of block u only."""
    model = scrambled(tiny(cross_attention_layers=(3,)), dtype=torch.float32)
    tokens, neighbors = random_tokens(1, 12, seed=1), random_tokens(1, 3, K, R, seed=2)
    changed = neighbors.clone()
    changed[:, 0] = (changed[:, 0] + 1) % V
    with torch.no_grad():
        moved = (model(tokens, neighbors).logits != model(tokens, changed).logits).any(-1)[0]
    assert moved.tolist() == [False] * 3 + [True] * 4 + [False] * 5


@pytest.mark.parametrize("config", VARIANTS, ids=["plain", "smear", "layernorm"])
def test_contents_of_masked_tokens_do_not_matter(config) -> None:
    model = scrambled(config, dtype=torch.float32)
    tokens, neighbors, mask = random_tokens(2, 10, seed=1), random_tokens(2, 3, K, R, seed=2), suffix_mask(2, 3, seed=3)
    with torch.no_grad():
        before = model(tokens, neighbors, mask).logits
        # Not even an id outside the vocabulary may be looked at.
        after = model(tokens, torch.where(mask, neighbors, V + 1000), mask).logits
    assert torch.equal(before, after)


def test_longer_padding_changes_nothing() -> None:
    model = scrambled(TINY)
    tokens, neighbors, mask = random_tokens(2, 10, seed=1), random_tokens(2, 3, K, R, seed=2), suffix_mask(2, 3, seed=3)
    wider = torch.cat((neighbors, random_tokens(2, 3, K, 5, seed=4)), -1)
    wider_mask = torch.cat((mask, torch.zeros((2, 3, K, 5), dtype=torch.bool)), -1)
    more = torch.cat((wider, wider[:, :, :1]), 2)
    more_mask = torch.cat((wider_mask, torch.zeros_like(wider_mask[:, :, :1])), 2)
    with torch.no_grad():
        before = model(tokens, neighbors, mask).logits
        torch.testing.assert_close(model(tokens, wider, wider_mask).logits, before, rtol=0, atol=1e-10)
        torch.testing.assert_close(model(tokens, more, more_mask).logits, before, rtol=0, atol=1e-10)


def test_sequences_of_a_batch_are_independent() -> None:
    """Also of how many neighbors the other sequence has."""
    model = scrambled(TINY)
    tokens, neighbors, mask = random_tokens(2, 10, seed=1), random_tokens(2, 3, K, R, seed=2), suffix_mask(2, 3, seed=3)
    with torch.no_grad():
        together = model(tokens, neighbors, mask).logits
        for b in range(2):
            alone = model(tokens[b : b + 1], neighbors[b : b + 1], mask[b : b + 1]).logits
            torch.testing.assert_close(together[b : b + 1], alone, rtol=0, atol=1e-10)


def test_order_of_neighbors_does_not_matter() -> None:
    model = scrambled(TINY)
    tokens, neighbors, mask = random_tokens(1, 9, seed=1), random_tokens(1, 3, K, R, seed=2), suffix_mask(1, 3, seed=3)
    with torch.no_grad():
        before = model(tokens, neighbors, mask).logits
        after = model(tokens, neighbors.flip(2), mask.flip(2)).logits
    torch.testing.assert_close(before, after, rtol=0, atol=1e-10)


@pytest.mark.parametrize("length", [3, 8, 10])
def test_no_retrieval_is_one_thing(length: int) -> None:
    """No neighbors, all masked, none of the rows given, a gate of 0: the same bits; with neighbors: others."""
    model = scrambled(TINY, dtype=torch.float32)
    rows = count_complete_chunks(length, M, (length - 1) % M + 1)
    tokens, neighbors = random_tokens(2, length, seed=1), random_tokens(2, rows, K, R, seed=2)
    with torch.no_grad():
        off = model(tokens).logits
        assert torch.equal(off, model(tokens, neighbors, torch.zeros_like(neighbors, dtype=torch.bool)).logits)
        assert torch.equal(off, model(tokens, neighbors[:, :0]).logits)
        assert not torch.equal(off, model(tokens, neighbors).logits)
        model.gate = 0.0
        assert torch.equal(off, model(tokens, neighbors).logits)


def test_short_first_chunk_without_complete_chunk() -> None:
    """Fewer tokens than the first chunk: its neighbors serve no position."""
    model = scrambled(TINY, dtype=torch.float32)
    tokens, neighbors = random_tokens(1, 2, seed=1), random_tokens(1, 1, K, R, seed=2)
    with torch.no_grad():
        assert torch.equal(
            model(tokens, neighbors, first_chunk_length=4).logits, model(tokens, first_chunk_length=4).logits
        )


@pytest.mark.parametrize("first", [1, 3, M])
def test_prefix_consistency(first: int) -> None:
    """With the first chunk's length fixed, a prefix gives the logits of the whole, at every length."""
    model = scrambled(TINY)
    tokens, neighbors, mask = random_tokens(1, 11, seed=1), random_tokens(1, 3, K, R, seed=2), suffix_mask(1, 3, seed=3)
    with torch.no_grad():
        whole = model(tokens, neighbors, mask, first_chunk_length=first).logits
        for n in range(1, 11):
            rows = min(3, 1 if n <= first else 1 - (first - n) // M)
            part = model(tokens[:, :n], neighbors[:, :rows], mask[:, :rows], first_chunk_length=first).logits
            torch.testing.assert_close(part, whole[:, :n], rtol=0, atol=1e-10)


def test_cross_attention_sees_positions() -> None:
    """A bug seen elsewhere: queries 2..M of a block had one and the same position. Identical tokens and an identical
    stream must still give different outputs at different places of a block, and a reversed neighbor another output."""
    model = scrambled(tiny(cross_attention_layers=(1,)))
    attention = model.layers[0].cross_attention
    from retro.nn.rotary import rotary_table

    rotary = rotary_table(2 * M + R, model.config.rotary_width, 10000.0, torch.device("cpu"), torch.float64)
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randn(1, 1, 16, generator=generator, dtype=torch.float64).expand(1, M, 16).contiguous()
    encoded = torch.randn(1, R, 16, generator=generator, dtype=torch.float64)
    queries = rotary.rows(M - 1, 2 * M - 1)
    with torch.no_grad():
        out = attention.attend(blocks, *attention.project_neighbors(encoded, 1, rotary), queries)[0]
        reversed_out = attention.attend(blocks, *attention.project_neighbors(encoded.flip(1), 1, rotary), queries)[0]
    distances = torch.cdist(out, out) + torch.eye(M)
    assert distances.min() > 1e-3
    assert (out - reversed_out).abs().max() > 1e-3
