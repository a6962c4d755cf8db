"""Mimetic initialisation does what it says: equal tokens find each other, and what follows them is copied."""

from __future__ import annotations

import pytest
import torch

from retro.model import RetroModel
from tests.model.builders import random_tokens, tiny

LARGE = {
    "vocab_size": 50,
    "width": 128,
    "num_heads": 4,
    "embedding_norm": True,
    "attention_init": "mimetic",
    "smear_keys": True,
    "qk_norm": True,
    "rotary_fraction": 0.25,
    "num_layers": 2,
    "cross_attention_layers": (1,),
}


def build(**changes: object) -> RetroModel:
    torch.manual_seed(0)
    return RetroModel(tiny(**{**LARGE, **changes})).eval()


@pytest.mark.parametrize("encoder_width", [None, 64])
def test_what_follows_the_same_token_in_a_neighbor_is_copied(encoder_width: int | None) -> None:
    model = build(encoder_width=encoder_width)
    chunk = model.config.chunk_length
    tokens = torch.arange(chunk)[None]
    last = int(tokens[0, -1])
    neighbors = torch.arange(20, 20 + 2 * chunk)[None, None, None].clone()
    with torch.no_grad():
        without = torch.log_softmax(model(tokens).logits[0, -1], -1)
        neighbors[0, 0, 0, 2:4] = torch.tensor([last, 45])
        copied = torch.log_softmax(model(tokens, neighbors).logits[0, -1], -1) - without
    others = [t for t in range(50) if t not in (last, 45)]
    assert copied[45] > copied[others].max()


def test_gpt_and_retro_start_from_the_same_decoder() -> None:
    retro, gpt = build().state_dict(), build(cross_attention_layers=()).state_dict()
    assert set(gpt) < set(retro)
    assert all(torch.equal(gpt[name], retro[name]) for name in gpt)


def test_grouped_heads_and_another_encoder_width_keep_their_shapes() -> None:
    model = build(num_kv_heads=2, encoder_width=64)
    out = model(random_tokens(1, 8), random_tokens(1, 2, 2, 8, seed=1)).logits
    assert out.isfinite().all()
