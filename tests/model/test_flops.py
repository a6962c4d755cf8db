"""The analytic count of operations against torch's counter of what is really executed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from retro.config.model import ModelConfig
from retro.model import RetroModel
from retro.model.flops import Flops, batch_flops, plan_counts, sequence_flops
from retro.model.retrieval_plan import plan_retrieval
from retro.model.retro import is_retrieval_parameter
from tests.model.builders import TINY, K, M, R, random_tokens, suffix_mask, tiny

# In-place products that the counter does not know.
_IN_PLACE = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}

CONFIGS = {
    "swiglu": TINY,
    "gelu, one key-value head, untied": tiny(ffn="gelu", num_kv_heads=1, tie_embeddings=False),
    "two query heads per key-value head": tiny(num_heads=4, head_width=4, num_kv_heads=2),
    "wide heads": tiny(head_width=32),
    "narrow encoder": tiny(encoder_width=8, head_width=8),
    "wide and deep encoder of its own heads": tiny(encoder_width=24, encoder_num_heads=3, encoder_num_layers=3),
    "encoder of its own feed-forward width": tiny(encoder_ffn_width=40, encoder_num_layers=1),
    "more cross-attention": tiny(encoder_cross_attention_layers=(1, 2), cross_attention_layers=(1, 2, 3)),
    "encoder that does not see the chunk": tiny(encoder_cross_attention_layers=()),
    "learned positions": tiny(positions="learned", max_positions=16),
    "parallel blocks": tiny(block="parallel", norm="layernorm", bias=True, ffn="gelu_tanh"),
    "biases of attention": tiny(attention_bias=True, ffn_bias=False),
    "normed queries, smeared keys": tiny(qk_norm=True, smear_keys=True, embedding_norm=True, rotary_fraction=0.5),
    "learned gates": tiny(gate_kind="learned", gate_value=0.0),
    "one layer gated off": tiny(gate_value=(0.0, 0.5)),
    "scaled positions": tiny(rotary_scaling_kind="linear", rotary_scaling_factor=2.0),
}


def executed(
    config: ModelConfig, tokens: Tensor, scored: Tensor | None = None, frozen: bool = False, **neighbors: Any
) -> tuple[int, int]:
    """Counted by torch, attention written out: (forward alone, forward and backward). frozen: retrieval parameters
    alone are trained."""
    torch.manual_seed(0)
    model = RetroModel(config)
    if frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_retrieval_parameter(name))

    def count(train: bool) -> int:
        counter = FlopCounterMode(display=False, custom_mapping=_IN_PLACE)
        with counter, sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(train):
            loss = model(tokens, **neighbors, targets_BN=tokens, loss_mask_BN=scored).loss
            if train:
                loss.backward()
        return counter.get_total_flops()

    return count(False), count(True)


def counted(config: ModelConfig, tokens: Tensor, scored: Tensor | None = None, **neighbors: Any) -> Flops:
    batch, length = tokens.shape
    return batch_flops(config, batch, length, scored=None if scored is None else int(scored.sum()), **neighbors)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize(("length", "chunks", "scored"), [(12, 3, 12), (12, 2, 5), (8, 0, 8)])
def test_nominal_equals_the_counter(config: ModelConfig, length: int, chunks: int, scored: int) -> None:
    flops = sequence_flops(config, length, retrieved_chunks=chunks, num_neighbors=K, retrieved_length=R, scored=scored)
    tokens, mask = random_tokens(1, length), (torch.arange(length) < scored)[None]
    neighbors = {"neighbors_BLKR": random_tokens(1, chunks, K, R)} if chunks else {}
    assert executed(config, tokens, mask, **neighbors) == (flops.forward, flops.training)
    assert counted(config, tokens, mask, **neighbors) == flops


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("length", [16, 14])
def test_a_batch_with_missing_and_short_neighbors(config: ModelConfig, length: int) -> None:
    tokens, mask = random_tokens(2, length), suffix_mask(2, 4)
    mask[0, 1] = False
    mask[:, -1] = False
    neighbors = {"neighbors_BLKR": random_tokens(2, 4, K, R, seed=1), "neighbor_mask_BLKR": mask}
    scored = random_tokens(2, length, seed=2) > 5
    flops = counted(config, tokens, scored, **neighbors)
    assert executed(config, tokens, scored, **neighbors) == (flops.forward, flops.training)
    assert executed(config, tokens, scored, frozen=True, **neighbors) == (flops.forward, flops.retrieval_training)
    full = 2 * sequence_flops(config, length, retrieved_chunks=4, num_neighbors=K, retrieved_length=R).forward
    assert 0 < flops.forward < full


def test_equal_neighbors_are_counted_once_where_they_are_encoded_once() -> None:
    config = CONFIGS["encoder that does not see the chunk"]
    neighbors = random_tokens(1, 3, K, R)
    neighbors[0, 1:] = neighbors[0, :1]
    flops = counted(config, random_tokens(1, 12), neighbors_BLKR=neighbors)
    assert executed(config, random_tokens(1, 12), neighbors_BLKR=neighbors) == (flops.forward, flops.training)
    apart = counted(config, random_tokens(1, 12), neighbors_BLKR=random_tokens(1, 3, K, R))
    assert 3 * flops.encoder == apart.encoder


@pytest.mark.parametrize("starts", [[0, 0, 0, 0, 0, 5, 5, 5, 5, 5, 5, 5], list(range(12)), [0] * 12])
def test_packed_documents(starts: Sequence[int]) -> None:
    given = {
        "document_starts_BN": torch.tensor([starts, [0] * 12]),
        "neighbors_BLKR": random_tokens(2, 3, K, R),
        "chunk_ends_BL": torch.tensor([[3, 7, 11], [2, 9, -1]]),
    }
    flops = counted(TINY, random_tokens(2, 12), **given)
    assert executed(TINY, random_tokens(2, 12), **given) == (flops.forward, flops.training)


def test_nothing_retrieved_is_a_gpt() -> None:
    neighbors = random_tokens(1, 3, K, R)
    gpt = sequence_flops(TINY, 12)
    off = {"neighbors_BLKR": neighbors, "neighbor_mask_BLKR": torch.zeros_like(neighbors, dtype=torch.bool)}
    assert counted(TINY, random_tokens(1, 12), **off) == gpt
    closed = tiny(gate_value=0.0)
    assert counted(closed, random_tokens(1, 12), neighbors_BLKR=neighbors) == gpt
    assert executed(closed, random_tokens(1, 12), neighbors_BLKR=neighbors)[0] == gpt.forward
    assert counted(tiny(cross_attention_layers=()), random_tokens(1, 12)) == gpt


def test_fused_attention_counts_what_it_computes_again() -> None:
    """The one difference from torch's counter: of fused kernels it counts that their backward pass makes the scores a
    second time, half as many operations as attention's forward pass has."""
    cpu_kernel = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, **__: (
            sdpa_backward_flop_count(grad, q, k, v)
        ),
    }
    tokens, model = random_tokens(2, 12), RetroModel(TINY)
    counter = FlopCounterMode(display=False, custom_mapping={**_IN_PLACE, **cpu_kernel})
    with counter, sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        model(tokens, targets_BN=tokens).loss.backward()
    attention = 2 * TINY.num_layers * 4 * 12**2 * TINY.num_heads * TINY.head_size
    assert counter.get_total_flops() == counted(TINY, tokens).training + attention // 2


def test_counts_of_a_plan() -> None:
    neighbors, mask = random_tokens(1, 3, K, R), torch.ones(1, 3, K, R, dtype=torch.bool)
    mask[0, 0, 1], mask[0, 1], mask[..., 6:] = False, False, False
    plan = plan_retrieval(neighbors, mask, length=12, chunk_length=M, first_chunk_length=M)
    assert plan is not None
    counts = plan_counts(plan)
    assert (counts.rows, counts.encoded, counts.num_neighbors, counts.retrieved_length) == (2, 3, K, 6)


def test_parts_add_up() -> None:
    flops = sequence_flops(TINY, 12, retrieved_chunks=2)
    assert flops.forward == flops.decoder + flops.head + flops.encoder + flops.cross_attention
    assert flops.training == 3 * flops.forward
    assert min(flops.decoder, flops.head, flops.encoder, flops.cross_attention) > 0
    off = sequence_flops(TINY, 12)
    assert off.encoder == off.cross_attention == 0
    assert off.decoder == flops.decoder


def test_retrieved_length_defaults_to_two_chunks() -> None:
    assert sequence_flops(TINY, 12, retrieved_chunks=2) == sequence_flops(
        TINY, 12, retrieved_chunks=2, retrieved_length=2 * M
    )


def test_refusals() -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        sequence_flops(tiny(vocab_size=None), 8)
    with pytest.raises(ValueError, match="vocab_size"):
        batch_flops(tiny(vocab_size=None), 1, 8)
    with pytest.raises(ValueError, match="plain GPT"):
        sequence_flops(tiny(cross_attention_layers=()), 8, retrieved_chunks=1)
