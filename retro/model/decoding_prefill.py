"""The first pass of decoding: whole sequences of unequal length through the model at once, into the cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from retro.model.decoder import DecoderLayer
from retro.model.decoding_cache import DecodingCache
from retro.model.retrieval_plan import RetrievalPlan, plan_retrieval
from retro.model.retro import RetroModel


@dataclass(frozen=True)
class PrefillRetrieval:
    """Neighbors of B sequences, and which of them go on serving after the last token.

    serving: sequences, indices into B, whose last chunk has neighbors; rows int64: the plan's row of each; ends:
    position of that chunk's last token.
    """

    plan: RetrievalPlan
    serving: list[int]
    rows: Tensor
    ends: list[int]


def plan_prefill(
    model: RetroModel,
    length: int,
    neighbors_BLKR: Tensor | None,
    neighbor_mask_BLKR: Tensor | None,
    chunk_ends_BL: Tensor | None,
) -> PrefillRetrieval | None:
    """For sequences of at most `length` tokens; None if there is nothing to retrieve. Arguments as in
    RetroModel.forward."""
    if neighbors_BLKR is None or chunk_ends_BL is None or not chunk_ends_BL.numel() or model.retrieval_is_off:
        return None
    plan = plan_retrieval(
        neighbors_BLKR,
        neighbor_mask_BLKR,
        length=length,
        chunk_length=model.config.chunk_length,
        first_chunk_length=model.config.chunk_length,
        chunk_ends_BL=chunk_ends_BL,
        merge_equal=not model.config.encoder.cross_attention_layers,
    )
    if plan is None:
        return None
    # The plan's rows are the chunks with neighbors, in order.
    active = chunk_ends_BL >= 0
    if neighbor_mask_BLKR is not None:
        active = active & neighbor_mask_BLKR.any(dim=(2, 3))
    row_of = active.flatten().cumsum(0).view(active.shape) - 1
    last = chunk_ends_BL.argmax(dim=1, keepdim=True)
    found, rows, ends = (x.gather(1, last)[:, 0] for x in (active, row_of, chunk_ends_BL))
    return PrefillRetrieval(plan, found.nonzero()[:, 0].tolist(), rows[found], ends[found].tolist())


def prefill_sequences(
    model: RetroModel,
    cache: DecodingCache,
    slots: list[int],
    tokens_BN: Tensor,
    lengths: list[int],
    retrieval: PrefillRetrieval | None,
) -> Tensor:
    """Fill a slot of the cache with each sequence; returns the logits float32 [B, V] of what follows each.

    tokens_BN int64 [B, N], of which the first lengths[b] are the sequence. What stands behind them comes later than all
    that is read, so that no mask is needed: causal attention does not see it, nor does decoding, which overwrites it.
    """
    device = tokens_BN.device
    order, sizes = torch.tensor(slots, device=device), torch.tensor(lengths, device=device)
    every = torch.arange(len(slots), device=device)
    plan = None if retrieval is None else retrieval.plan
    serving = [] if retrieval is None else [slots[b] for b in retrieval.serving]
    x = model.embed_sequence(tokens_BN)
    rotary = model.self_rotary(tokens_BN.shape[1], x)
    cross_rotary = None if plan is None else model.cross_rotary(plan.longest, x)
    first_retro = model.config.cross_attention_layers[0] if model.config.is_retro else 0
    encoded: Tensor | None = None
    for number, layer in enumerate(model.decoder_layers):
        last: list[Tensor] = []

        def mix(normed: Tensor, layer: DecoderLayer = layer, number: int = number, last: list[Tensor] = last) -> Tensor:
            queries, keys, values = layer.attention.project(normed, rotary)
            cache.make_room(number, keys, normed)
            cache.layers[number].store(order, keys, values)
            last.append(normed[every, sizes - 1, None])
            return layer.attention.mix(queries, keys, values)

        attended = layer.attend(x, mix)
        if layer.attention.preparation.smear is not None:
            cache.layers[number].unsmeared[order] = layer.attention.unsmeared_keys(last[0])
        if number + 1 == first_retro:
            cache.remember(order, attended, sizes)
        if retrieval is not None and plan is not None and layer.cross_attention is not None:
            assert cross_rotary is not None
            if encoded is None:
                encoded = model.encode(plan, plan.cut_chunks(attended))
            if not layer.cross_attention.is_off:
                keys, values = layer.project_neighbors(encoded, plan, cross_rotary)
                if serving:
                    cache.store_neighbors(number, serving, keys[retrieval.rows], values[retrieval.rows])
                attended = layer.serve(attended, keys, values, plan, cross_rotary, model.gate)
        x = layer.finish(x, attended)
    if retrieval is not None and serving:
        cache.store_mask(serving, retrieval.plan, retrieval.rows)
    return F.linear(model.norm(x[every, sizes - 1]), model.output_weight).float()
