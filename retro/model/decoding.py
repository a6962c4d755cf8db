"""Decoding token by token: what the model computed for earlier tokens is kept, nothing is computed twice.

Kept per sequence: keys and values of self-attention in every layer; the residual stream of the last M tokens after the
self-attention of the first RETRO layer, on which the encoder is conditioned when neighbors are retrieved; and the keys
and values that cross-attention made of the neighbors that serve now. The function computed is that of
RetroModel.forward with the same `chunk_ends_BL`.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from retro.model.decoder import DecoderLayer
from retro.model.decoding_cache import DecodingCache, LayerCache
from retro.model.decoding_prefill import plan_prefill, prefill_sequences
from retro.model.retrieval_plan import RetrievalPlan, plan_retrieval
from retro.model.retro import RetroModel
from retro.nn.rotary import RotaryTable


class DecodingState:
    """Cache of `slots` sequences of at most `capacity` tokens each, on the model's device.

    num_neighbors K, retrieved_length R (default 2 M): room for the neighbors of one chunk per slot; K = 0: no
    retrieval. The model must be in evaluation mode, and its weights must not change. Slots in use are 0..A-1, without
    a gap. Under autocast, the caller's, keys and values are kept in its dtype.
    """

    def __init__(
        self,
        model: RetroModel,
        slots: int,
        capacity: int,
        num_neighbors: int = 0,
        retrieved_length: int | None = None,
    ) -> None:
        config = model.config
        if slots < 1 or capacity < 1:
            raise ValueError(f"slots, capacity: expected at least 1, found {slots} and {capacity}")
        if model.training:
            raise ValueError("model: expected evaluation mode, call model.eval()")
        if num_neighbors and not config.is_retro:
            raise ValueError("num_neighbors: a plain GPT retrieves nothing; expected 0")
        if config.max_positions is not None and capacity > config.max_positions:
            raise ValueError(
                f"capacity: expected at most max_positions {config.max_positions} of the model, found {capacity}"
            )
        self.model, self.slots, self.capacity = model, slots, capacity
        self.num_neighbors = num_neighbors
        self.retrieved_length = 2 * config.chunk_length if retrieved_length is None else retrieved_length
        #: Tokens that each slot holds; 0 = free.
        self.lengths = [0] * slots
        # Position of the token whose retrieval serves each slot; None = no neighbors.
        self._served_from: list[int | None] = [None] * slots
        self._device = model.embedding.weight.device
        self._chunk = config.chunk_length
        self._first_retro = config.cross_attention_layers[0] - 1 if config.is_retro else -1
        self._cache = DecodingCache(model, slots, capacity, num_neighbors, self.retrieved_length)

    @torch.inference_mode()
    def prefill(
        self,
        slot: int,
        tokens_N: Tensor,
        neighbors_LKR: Tensor | None = None,
        neighbor_mask_LKR: Tensor | None = None,
        chunk_ends_L: Tensor | None = None,
    ) -> Tensor:
        """Fill a slot with a sequence; returns the logits float32 [V] of what follows it.

        tokens_N int64 [n], 1 <= n <= capacity; neighbors_LKR int64 [L, K, R], neighbor_mask_LKR bool (None = all real),
        chunk_ends_L int64 [L]: as in RetroModel.forward. What the slot held is gone.
        """
        given = [x if x is None else x[None] for x in (neighbors_LKR, neighbor_mask_LKR, chunk_ends_L)]
        return self.prefill_batch([slot], tokens_N[None], [len(tokens_N)], *given)[0]

    @torch.inference_mode()
    def prefill_batch(
        self,
        slots: list[int],
        tokens_BN: Tensor,
        lengths: list[int],
        neighbors_BLKR: Tensor | None = None,
        neighbor_mask_BLKR: Tensor | None = None,
        chunk_ends_BL: Tensor | None = None,
    ) -> Tensor:
        """`prefill` of B slots at once, with sequences of unequal length; returns logits float32 [B, V].

        tokens_BN int64 [B, N]: the first lengths[b] of row b are its sequence, what follows them is not read (but must
        be ids of the vocabulary); neighbors, mask and chunk_ends as in RetroModel.forward (-1 = an unused row).
        """
        longest = tokens_BN.shape[1]
        if not all(0 <= slot < self.slots for slot in slots) or not 1 <= longest <= self.capacity:
            raise ValueError(
                f"expected slot 0..{self.slots - 1}, 1..{self.capacity} tokens; found {max(slots)}, {longest}"
            )
        if not len(slots) == len(set(slots)) == len(lengths) == len(tokens_BN):
            raise ValueError(f"expected {len(tokens_BN)} distinct slots and lengths, found {slots} and {lengths}")
        if not all(1 <= length <= longest for length in lengths):
            raise ValueError(f"lengths: expected 1..{longest}, found {lengths}")
        if neighbors_BLKR is not None:
            self._check_shape(neighbors_BLKR)
        retrieval = plan_prefill(self.model, longest, neighbors_BLKR, neighbor_mask_BLKR, chunk_ends_BL)
        logits = prefill_sequences(self.model, self._cache, slots, tokens_BN, lengths, retrieval)
        for slot, length in zip(slots, lengths, strict=True):
            self.lengths[slot], self._served_from[slot] = length, None
        if retrieval is not None:
            for b, end in zip(retrieval.serving, retrieval.ends, strict=True):
                self._served_from[slots[b]] = end
        return logits

    @torch.inference_mode()
    def decode(
        self,
        tokens_A: Tensor,
        neighbors_AKR: Tensor | None = None,
        neighbor_mask_AKR: Tensor | None = None,
        retrieved_A: Tensor | None = None,
    ) -> Tensor:
        """Append tokens_A[a], int64 [A], to slot a for the slots 0..A-1; returns the logits float32 [A, V] of what
        follows.

        retrieved_A bool [A], None = none: this token is the last one of a chunk that was retrieved with, and
        neighbors_AKR int64 [A, K, R], neighbor_mask_AKR bool (None = all real) serve from here on (rows of others are
        not read; a row without a real token = no neighbors from here on). Neighbors serve M positions at most.
        """
        count = len(tokens_A)
        if not 1 <= count <= self.slots or any(not 0 < n < self.capacity for n in self.lengths[:count]):
            raise ValueError(
                f"expected 1..{self.slots} tokens for slots that hold 1..{self.capacity - 1} tokens, found {count} for "
                f"{self.lengths[:count]}"
            )
        model, positions = self.model, self.lengths[:count]
        places = torch.tensor(positions, device=self._device)
        x = model.embed_sequence(tokens_A[:, None], places[:, None])
        events = [] if retrieved_A is None else retrieved_A.nonzero().squeeze(1).tolist()
        plan, arrivals = self._plan_events(events, neighbors_AKR, neighbor_mask_AKR)
        served = [a for a in range(count) if self._serves(a)]
        rows = torch.tensor(served, device=self._device)
        rotary = self._rows_of(self._cache.rotary, places)
        cross_rotary = self._query_rotary(served)
        longest = max(positions) + 1
        mask = None
        if min(positions) + 1 != longest:
            mask = torch.arange(longest, device=self._device) <= places[:, None]
        order = torch.arange(count, device=self._device)
        encoded: Tensor | None = None
        for number, layer in enumerate(model.decoder_layers):
            cache = self._cache.layers[number]

            def mix(normed: Tensor, layer: DecoderLayer = layer, cache: LayerCache = cache) -> Tensor:
                queries, keys, values, unsmeared = layer.attention.project_next(normed, rotary, cache.unsmeared[:count])
                cache.store_next(order, places, keys[:, 0], values[:, 0])
                if layer.attention.preparation.smear is not None:
                    cache.unsmeared[:count] = unsmeared
                return layer.attention.mix_cached(queries, *cache.read(count, longest), mask)

            attended = layer.attend(x, mix)
            if number == self._first_retro:
                self._cache.remember_next(order, places, attended[:, 0])
            if layer.cross_attention is not None:
                if plan is not None:
                    if encoded is None:
                        encoded = model.encode(plan, self._cache.recall(arrivals, [positions[a] for a in arrivals]))
                        self._cache.store_mask(arrivals, plan)
                    if not layer.cross_attention.is_off:
                        assert self._cache.cross_rotary is not None
                        keys, values = layer.project_neighbors(encoded, plan, self._cache.cross_rotary)
                        self._cache.store_neighbors(number, arrivals, keys, values)
                if served and not layer.cross_attention.is_off:
                    attended = self._serve(number, layer, attended, served, rows, cross_rotary)
            x = layer.finish(x, attended)
        for slot in range(count):
            self.lengths[slot] += 1
        return F.linear(model.norm(x[:, 0]), model.output_weight).float()

    def copy(self, source: int, target: int) -> None:
        """Make slot `target` hold what `source` holds."""
        with torch.inference_mode():
            self._cache.copy(source, target, self.lengths[source])
        self.lengths[target], self._served_from[target] = self.lengths[source], self._served_from[source]

    def clear(self, slot: int) -> None:
        """Free a slot."""
        self.lengths[slot], self._served_from[slot] = 0, None

    def _rows_of(self, table: RotaryTable | None, places: Tensor) -> RotaryTable | None:
        """Tables [A, 1, 1, w] of one position per row."""
        if table is None:
            return None
        return RotaryTable(table.cos[places][:, None], table.sin[places][:, None])

    def _query_rotary(self, served: list[int]) -> RotaryTable | None:
        """Query i = 0..M-1 of a block has position i + M - 1."""
        if not served:
            return None
        offsets = [self.lengths[a] - (self._served_from[a] or 0) + self._chunk - 1 for a in served]
        return self._rows_of(self._cache.cross_rotary, torch.tensor(offsets, device=self._device))

    # --- retrieval ----------------------------------------------------------------------------------------------------

    def _serves(self, slot: int) -> bool:
        """Whether neighbors serve the token that is being appended to `slot`."""
        begin = self._served_from[slot]
        return begin is not None and self.lengths[slot] - begin < self._chunk

    def _plan_events(
        self, events: list[int], neighbors: Tensor | None, mask: Tensor | None
    ) -> tuple[RetrievalPlan | None, list[int]]:
        """(plan of the neighbors that arrive with this token, their slots); a slot's earlier ones stop serving."""
        for slot in events:
            self._served_from[slot] = None
        if not events or neighbors is None or self.model.retrieval_is_off:
            return None, []
        self._check_shape(neighbors)
        if self._cache.history is None:
            raise ValueError("num_neighbors: this state was made without room for neighbors")
        plan = plan_retrieval(
            neighbors[events][:, None],
            None if mask is None else mask[events][:, None],
            length=1,
            chunk_length=self._chunk,
            first_chunk_length=1,
            merge_equal=not self.model.config.encoder.cross_attention_layers,
        )
        if plan is None:
            return None, []
        arrivals = events if plan.chunk_rows is None else [events[i] for i in plan.chunk_rows.tolist()]
        # Conditioned on the last M tokens, fewer at a sequence's begin; right-aligned.
        lengths = torch.tensor([min(self._chunk, self.lengths[a] + 1) for a in arrivals], device=self._device)
        real = torch.arange(self._chunk, device=self._device) >= self._chunk - lengths[:, None]
        for slot in arrivals:
            self._served_from[slot] = self.lengths[slot]
        return dataclasses.replace(plan, chunk_mask=None if bool(real.all()) else real), arrivals

    def _check_shape(self, neighbors: Tensor) -> None:
        if neighbors.shape[-2] > self.num_neighbors or neighbors.shape[-1] > self.retrieved_length:
            raise ValueError(
                f"neighbors: expected at most {self.num_neighbors} of {self.retrieved_length} tokens, found "
                f"{list(neighbors.shape[-2:])}"
            )

    def _serve(
        self,
        number: int,
        layer: DecoderLayer,
        attended: Tensor,
        served: list[int],
        rows: Tensor,
        rotary: RotaryTable | None,
    ) -> Tensor:
        """`attended` [A, 1, D] plus cross-attention of the rows that neighbors serve."""
        cache, mask = self._cache.layers[number], self._cache.cross_mask
        assert cache.cross_keys is not None and cache.cross_values is not None and mask is not None
        assert rotary is not None
        all_rows = len(served) == len(attended)
        # A view where it is a prefix, which is the usual case: no copy of the neighbors per token.
        picked = slice(0, len(attended)) if all_rows else rows
        # What lies behind the longest that serves is masked for all of them.
        width = self._cache.cross_width(served)
        added = layer.attend_neighbors(
            attended[picked],
            cache.cross_keys[picked, :, :width].transpose(1, 2),
            cache.cross_values[picked, :, :width].transpose(1, 2),
            rotary,
            mask[picked, :width],
            self.model.gate,
        )
        return attended + added if all_rows else attended.index_add(0, rows, added.to(attended.dtype))
