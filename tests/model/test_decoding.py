"""Decoding with a cache equals the whole forward pass, at every length, with and without retrieval."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from retro.config.model import ModelConfig
from retro.model.decoding import DecodingState
from tests.model.builders import TINY, K, M, R, random_tokens, scrambled, suffix_mask, tiny

CONFIGS: dict[str, ModelConfig] = {
    "plain": TINY,
    "smear": tiny(smear_keys=True, qk_norm=True, num_heads=4, num_kv_heads=2, rotary_fraction=0.5),
    "learned": tiny(positions="learned", max_positions=40, norm="layernorm", bias=True, ffn="gelu_tanh"),
    "parallel": tiny(block="parallel", gate_kind="learned", tie_embeddings=False),
    "narrow": tiny(encoder_width=8, encoder_num_layers=1, cross_attention_layers=(1, 3), gate_value=(0.0, 0.5)),
    "unconditioned": tiny(encoder_cross_attention_layers=()),
    "scaled": tiny(rotary_scaling_kind="linear", rotary_scaling_factor=2.0, embedding_norm=True),
}
EXACT = {"rtol": 0.0, "atol": 1e-9}
LENGTH = 19


def whole(model, tokens: Tensor, neighbors: Tensor, mask: Tensor, ends: list[int], length: int) -> Tensor:
    """Logits [V] after `length` tokens, with the chunks that end within them."""
    rows = [i for i, e in enumerate(ends) if e < length]
    with torch.no_grad():
        if not rows:
            return model(tokens[None, :length]).logits[0, -1]
        chunk_ends = torch.tensor([[ends[i] for i in rows]])
        return model(tokens[None, :length], neighbors[None, rows], mask[None, rows], chunk_ends_BL=chunk_ends).logits[
            0, -1
        ]


@pytest.mark.parametrize("prompt", [1, 2, M, M + 1, 11])
@pytest.mark.parametrize("every", [0, 1, 2, 3, M])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_length(name: str, every: int, prompt: int) -> None:
    """Chunks of the prompt end at its last token and M tokens apart before it; then one every `every` tokens."""
    model = scrambled(CONFIGS[name]).eval()
    tokens = random_tokens(LENGTH, seed=1)
    ends = sorted(range(prompt - 1, -1, -M)) + list(range(prompt - 1 + every, LENGTH, every)) if every else []
    neighbors, mask = random_tokens(max(1, len(ends)), K, R, seed=2), suffix_mask(1, max(1, len(ends)), seed=3)[0]
    state = DecodingState(model, slots=2, capacity=LENGTH, num_neighbors=K, retrieved_length=R)
    rows = [i for i, e in enumerate(ends) if e < prompt]
    logits = state.prefill(
        0,
        tokens[:prompt],
        neighbors[rows] if rows else None,
        mask[rows] if rows else None,
        torch.tensor([ends[i] for i in rows]) if rows else None,
    )
    torch.testing.assert_close(logits.double(), whole(model, tokens, neighbors, mask, ends, prompt), rtol=0, atol=1e-5)
    for p in range(prompt, LENGTH):
        row = ends.index(p) if p in ends else 0
        logits = state.decode(
            tokens[p : p + 1], neighbors[row : row + 1], mask[row : row + 1], torch.tensor([p in ends])
        )
        expected = whole(model, tokens, neighbors, mask, ends, p + 1)
        torch.testing.assert_close(logits[0].double(), expected, rtol=0, atol=1e-5)


def test_slots_of_unequal_length_and_retrieval_do_not_disturb_each_other() -> None:
    """Three sequences with prompts, retrievals and ends of their own equal the same sequences alone; slots are moved
    and freed on the way."""
    model = scrambled(TINY).eval()
    state = DecodingState(model, slots=4, capacity=24, num_neighbors=K, retrieved_length=R)
    prompts, every = [3, 9, 1], [2, M, 3]
    tokens = [random_tokens(24, seed=10 + i) for i in range(3)]
    neighbors = [random_tokens(24, K, R, seed=20 + i) for i in range(3)]
    mask = suffix_mask(1, 24, seed=3)[0]
    ends: list[list[int]] = [[n - 1] for n in prompts]
    for i, n in enumerate(prompts):
        state.prefill(i, tokens[i][:n], neighbors[i][:1], mask[:1], torch.tensor([n - 1]))
    order = [0, 1, 2]
    for step in range(1, 13):
        if step == 6:  # sequence 1 leaves, the last one takes its place
            state.copy(2, 1)
            state.clear(2)
            order = [0, 2]
        positions = [prompts[i] + step - 1 for i in order]
        retrieved = torch.tensor([step % every[i] == 0 for i in order])
        rows = []
        for i, p, now in zip(order, positions, retrieved.tolist(), strict=True):
            if now:
                ends[i].append(p)
            rows.append(len(ends[i]) - 1)
        logits = state.decode(
            torch.stack([tokens[i][p] for i, p in zip(order, positions, strict=True)]),
            torch.stack([neighbors[i][r] for i, r in zip(order, rows, strict=True)]),
            torch.stack([mask[r] for r in rows]),
            retrieved,
        )
        for a, (i, p) in enumerate(zip(order, positions, strict=True)):
            expected = whole(model, tokens[i], neighbors[i], mask, ends[i], p + 1)
            torch.testing.assert_close(logits[a].double(), expected, rtol=0, atol=1e-5)
    assert state.lengths == [15, 13, 0, 0]


def test_neighbors_serve_one_chunk_length_at_most() -> None:
    """Without another retrieval they stop after M positions, as in the whole forward pass."""
    model = scrambled(TINY).eval()
    tokens, neighbors = random_tokens(14, seed=1), random_tokens(1, K, R, seed=2)
    mask = torch.ones(1, K, R, dtype=torch.bool)
    state = DecodingState(model, 1, 14, K, R)
    state.prefill(0, tokens[:3], neighbors, None, torch.tensor([2]))
    for p in range(3, 14):
        logits = state.decode(tokens[p : p + 1])
        torch.testing.assert_close(
            logits[0].double(), whole(model, tokens, neighbors, mask, [2], p + 1), rtol=0, atol=1e-5
        )


def test_a_slot_can_be_filled_again() -> None:
    model = scrambled(TINY).eval()
    state = DecodingState(model, 1, 20, K, R)
    neighbors = random_tokens(2, K, R, seed=2)
    state.prefill(0, random_tokens(15, seed=3), neighbors, None, torch.tensor([10, 14]))
    tokens = random_tokens(6, seed=4)
    state.prefill(0, tokens[:4])
    with torch.no_grad():
        for p in (4, 5):
            expected = model(tokens[None, : p + 1]).logits[0, -1]
            torch.testing.assert_close(state.decode(tokens[p : p + 1])[0].double(), expected, rtol=0, atol=1e-5)


def test_no_neighbor_at_all_is_no_retrieval() -> None:
    """K = 0 neighbors: those that the slot held before do not serve."""
    model = scrambled(TINY).eval()
    tokens = random_tokens(6, seed=4)
    state = DecodingState(model, 1, 8, K, R)
    state.prefill(0, random_tokens(4, seed=3), random_tokens(1, K, R, seed=2), None, torch.tensor([3]))
    state.prefill(0, tokens[:4], random_tokens(1, 0, R), None, torch.tensor([3]))
    with torch.no_grad():
        expected = model(tokens[None, :5]).logits[0, -1]
    torch.testing.assert_close(state.decode(tokens[4:5])[0].double(), expected, rtol=0, atol=1e-5)


def test_gate_zero_ignores_neighbors() -> None:
    model = scrambled(TINY, dtype=torch.float32).eval()
    model.gate = 0.0
    tokens, neighbors = random_tokens(6), random_tokens(1, K, R)
    outputs = []
    for given in (neighbors, None):
        state = DecodingState(model, 1, 8, K, R)
        state.prefill(0, tokens[:4], given, None, None if given is None else torch.tensor([3]))
        outputs.append(state.decode(tokens[4:5], given, None, torch.tensor([given is not None])))
    assert torch.equal(*outputs)


def test_bfloat16() -> None:
    """Under autocast the cache is bfloat16, and the logits are those of the forward pass to its precision."""
    model = scrambled(TINY, dtype=torch.float32).eval()
    tokens, neighbors = random_tokens(9, seed=1), random_tokens(2, K, R, seed=2)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        state = DecodingState(model, 1, 9, K, R)
        state.prefill(0, tokens[:4], neighbors[:1], None, torch.tensor([3]))
        for p in range(4, 9):
            logits = state.decode(tokens[p : p + 1], neighbors[1:], None, torch.tensor([p == 6]))
        ends = torch.tensor([[3, 6]])
        expected = model(tokens[None], neighbors[None], chunk_ends_BL=ends).logits[0, -1].float()
    torch.testing.assert_close(logits[0], expected, rtol=0, atol=float(expected.abs().max()) * 2**-5)
    torch.testing.assert_close(logits[0].norm(), expected.norm(), rtol=2**-6, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: DecodingState(m.train(), 1, 8), "model: expected evaluation mode"),
        (lambda m: DecodingState(m, 0, 8), "slots, capacity: expected at least 1"),
        (lambda m: DecodingState(m, 1, 8).prefill(0, random_tokens(9)), "expected slot 0..0, 1..8 tokens"),
        (lambda m: DecodingState(m, 1, 8).decode(random_tokens(1)), "expected 1..1 tokens for slots"),
        (
            lambda m: DecodingState(m, 1, 8, 1, R).prefill(
                0, random_tokens(4), random_tokens(1, K, R), None, torch.tensor([3])
            ),
            "neighbors: expected at most 1 of 8 tokens",
        ),
    ],
)
def test_wrong_use_is_refused(make, message: str) -> None:
    model = scrambled(TINY).eval()
    with pytest.raises(ValueError, match=message):
        make(model)


def test_full_slot_is_refused() -> None:
    model = scrambled(TINY).eval()
    state = DecodingState(model, 1, 4)
    state.prefill(0, random_tokens(4))
    with pytest.raises(ValueError, match=r"slots that hold 1\.\.3 tokens"):
        state.decode(random_tokens(1))
    learned = scrambled(tiny(positions="learned", max_positions=8)).eval()
    with pytest.raises(ValueError, match="at most max_positions 8"):
        DecodingState(learned, 1, 9)
