"""The analytic count of operations against torch's counter of what is really executed."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from retro.config.model import ModelConfig
from retro.model import RetroModel
from retro.model.flops import sequence_flops
from tests.model.builders import TINY, K, M, R, random_tokens, tiny


def executed(config: ModelConfig, length: int, chunks: int, scored: int) -> int:
    """Counted by torch for one training step of one sequence, `chunks` rows of whole neighbors, attention written
    out."""
    model = RetroModel(config)
    tokens = random_tokens(1, length)
    neighbors = random_tokens(1, chunks, K, R) if chunks else None
    mask = (torch.arange(length) < scored)[None]
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}  # unknown to the counter
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens, neighbors, targets_BN=tokens, loss_mask_BN=mask).loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        tiny(ffn="gelu", num_kv_heads=1, tie_embeddings=False),
        tiny(encoder_width=8, head_width=8),
        tiny(encoder_cross_attention_layers=(1, 2), cross_attention_layers=(1, 2, 3)),
    ],
    ids=["plain", "grouped", "narrow encoder", "more cross-attention"],
)
@pytest.mark.parametrize(("length", "chunks", "scored"), [(12, 3, 12), (12, 2, 5), (8, 0, 8)])
def test_equals_the_counter(config: ModelConfig, length: int, chunks: int, scored: int) -> None:
    counted = sequence_flops(
        config, length, retrieved_chunks=chunks, num_neighbors=K, retrieved_length=R, scored=scored
    )
    assert executed(config, length, chunks, scored) == counted.training
    assert counted.training == 3 * counted.forward


def test_parts_add_up() -> None:
    counted = sequence_flops(TINY, 12, retrieved_chunks=2)
    assert counted.forward == counted.decoder + counted.head + counted.encoder + counted.cross_attention
    assert min(counted.decoder, counted.head, counted.encoder, counted.cross_attention) > 0
    off = sequence_flops(TINY, 12)
    assert off.encoder == off.cross_attention == 0
    assert off.decoder == counted.decoder


def test_retrieved_length_defaults_to_two_chunks() -> None:
    assert sequence_flops(TINY, 12, retrieved_chunks=2) == sequence_flops(
        TINY, 12, retrieved_chunks=2, retrieved_length=2 * M
    )


def test_refusals() -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        sequence_flops(tiny(vocab_size=None), 8)
    with pytest.raises(ValueError, match="plain GPT"):
        sequence_flops(tiny(cross_attention_layers=()), 8, retrieved_chunks=1)
