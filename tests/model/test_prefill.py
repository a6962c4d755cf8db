"""Sequences of unequal length in one pass: each as if it were alone, and as in a training batch that is padded on the
left."""

from __future__ import annotations

import pytest
import torch

from retro.model.decoding import DecodingState
from tests.model.builders import TINY, K, M, R, random_tokens, scrambled, suffix_mask
from tests.model.test_decoding import CONFIGS

LENGTHS = [2 * M + 3, 1, M, 2 * M + 1, M - 1]
#: Chunks of each that have neighbors, from the last one back; the fourth's last chunk has none, the fifth none at all.
CHUNKS = [3, 1, 1, 2, 0]
ANSWER = 3
#: Sequences that retrieve again, with their second new token.
AGAIN = [0, 3, 4]


def batch():
    """(tokens [B, N], ends [B, L], neighbors, mask): padded on the right with tokens that mean nothing."""
    width = max(CHUNKS)
    tokens = random_tokens(len(LENGTHS), max(LENGTHS) + ANSWER, seed=1)
    ends = torch.full((len(LENGTHS), width), -1)
    mask = suffix_mask(len(LENGTHS), width, seed=3)
    for b, (length, count) in enumerate(zip(LENGTHS, CHUNKS, strict=True)):
        ends[b, :count] = torch.tensor(sorted(length - 1 - M * i for i in range(count)))
    mask[3, CHUNKS[3] - 1] = False
    return tokens, ends, random_tokens(len(LENGTHS), width, K, R, seed=2), mask


def alone(model, b: int, stop: int) -> torch.Tensor:
    """Logits [V] after `stop` tokens of sequence b, by the whole forward pass."""
    tokens, ends, neighbors, mask = batch()
    rows = ends[b] >= 0
    given = [neighbors[b, rows], mask[b, rows], ends[b, rows]]
    if b in AGAIN and stop > LENGTHS[b] + 1:
        given = [torch.cat((x, new[None])) for x, new in zip(given, again(b), strict=True)]
    with torch.no_grad():
        if not len(given[2]):
            return model(tokens[b : b + 1, :stop]).logits[0, -1]
        found, real, chunk_ends = (x[None] for x in given)
        return model(tokens[b : b + 1, :stop], found, real, chunk_ends_BL=chunk_ends).logits[0, -1]


def again(b: int):
    """(neighbors [K, R], mask, position of the last token) of what sequence b retrieves after its prompt."""
    return random_tokens(K, R, seed=30 + b), suffix_mask(1, 1, seed=40 + b)[0, 0], torch.tensor(LENGTHS[b] + 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_each_sequence_of_a_pass_is_as_if_alone(name: str) -> None:
    model = scrambled(CONFIGS[name]).eval()
    tokens, ends, neighbors, mask = batch()
    state = DecodingState(model, slots=6, capacity=max(LENGTHS) + ANSWER, num_neighbors=K, retrieved_length=R)
    # What slots held before, and the order that they are filled in, make no difference.
    state.prefill(2, random_tokens(9, seed=8), neighbors[0, :1], None, torch.tensor([7]))
    slots = [3, 0, 2, 4, 1]
    logits = state.prefill_batch(slots, tokens[:, : max(LENGTHS)], LENGTHS, neighbors, mask, ends)
    for b, length in enumerate(LENGTHS):
        torch.testing.assert_close(logits[b].double(), alone(model, b, length), rtol=0, atol=1e-5)
    for step in range(ANSWER):
        fed = [0] * 5
        for b, slot in enumerate(slots):
            fed[slot] = int(tokens[b, LENGTHS[b] + step])
        found, real, now = torch.zeros(5, K, R, dtype=torch.int64), torch.zeros(5, K, R).bool(), torch.zeros(5).bool()
        for b in AGAIN if step == 1 else []:
            found[slots[b]], real[slots[b]], _ = again(b)
            now[slots[b]] = True
        logits = state.decode(torch.tensor(fed), found, real, now)
        for b, slot in enumerate(slots):
            expected = alone(model, b, LENGTHS[b] + step + 1)
            torch.testing.assert_close(logits[slot].double(), expected, rtol=0, atol=1e-5)


def test_what_stands_behind_a_sequence_is_not_read() -> None:
    model = scrambled(TINY).eval()
    tokens, ends, neighbors, mask = batch()
    tokens = tokens[:, : max(LENGTHS)]
    other = tokens.clone()
    for b, length in enumerate(LENGTHS):
        other[b, length:] = 0
    found = []
    for given in (tokens, other):
        state = DecodingState(model, 5, max(LENGTHS) + 1, K, R)
        logits = state.prefill_batch([0, 1, 2, 3, 4], given, LENGTHS, neighbors, mask, ends)
        found.append(torch.stack([logits, state.decode(tokens[:, 0])]))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_training_batch_padded_on_the_left_computes_what_decoding_does(name: str) -> None:
    """A question of any length whose last token ends a chunk, the answer in the chunk after it; the padding before it
    is a document of its own, and the neighbors come with the question's last token."""
    model = scrambled(CONFIGS[name]).eval()
    lengths, width = [5, 1, M, 2 * M, M + 1], 2 * M
    tokens = random_tokens(len(lengths), 3 * M, seed=4)
    neighbors, mask = random_tokens(len(lengths), 1, K, R, seed=5), suffix_mask(len(lengths), 1, seed=6)
    starts = torch.zeros_like(tokens)
    for b, length in enumerate(lengths):
        starts[b, width - length :] = width - length
    with torch.no_grad():
        padded = model(
            tokens,
            neighbors,
            mask,
            document_starts_BN=starts,
            chunk_ends_BL=torch.full((len(lengths), 1), width - 1),
        ).logits
    state = DecodingState(model, len(lengths), 3 * M, K, R)
    prompts = torch.zeros(len(lengths), width, dtype=torch.int64)
    for b, length in enumerate(lengths):
        prompts[b, :length] = tokens[b, width - length : width]
    ends = torch.tensor(lengths)[:, None] - 1
    logits = state.prefill_batch(list(range(len(lengths))), prompts, lengths, neighbors, mask, ends)
    for position in range(width - 1, 3 * M - 1):
        torch.testing.assert_close(logits.double(), padded[:, position], rtol=0, atol=1e-5)
        logits = state.decode(tokens[:, position + 1])
    for b, length in enumerate(lengths):
        with torch.no_grad():
            lone = model(
                tokens[b : b + 1, width - length :],
                neighbors[b : b + 1],
                mask[b : b + 1],
                chunk_ends_BL=ends[b : b + 1],
            ).logits[0]
        torch.testing.assert_close(lone[length - 1 :], padded[b, width - 1 :], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("slots", "lengths", "message"),
    [
        ([0, 2], [3, 3], "expected slot 0..1"),
        ([0, 0], [3, 3], "expected 2 distinct slots and lengths"),
        ([0, 1], [3], "expected 2 distinct slots and lengths"),
        ([0, 1], [3, 5], "lengths: expected 1..4"),
        ([0, 1], [0, 3], "lengths: expected 1..4"),
    ],
)
def test_wrong_use_is_refused(slots, lengths, message: str) -> None:
    state = DecodingState(scrambled(TINY).eval(), 2, 8)
    with pytest.raises(ValueError, match=message):
        state.prefill_batch(slots, random_tokens(2, 4), lengths)
