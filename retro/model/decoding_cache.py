"""What decoding keeps of earlier tokens, for a number of sequences side by side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retro.model.retrieval_plan import RetrievalPlan
from retro.model.retro import RetroModel
from retro.nn.rotary import RotaryTable


@dataclass
class LayerCache:
    """Tensors of one layer: keys, values [slots, Hkv, capacity, E]; unsmeared [slots, 1, Hkv, E]: keys of the last
    token before smearing; cross_keys, cross_values [slots, Hkv, K R, E]. Tokens of one head lie side by side, as a
    single query reads them."""

    keys: Tensor
    values: Tensor
    unsmeared: Tensor
    cross_keys: Tensor | None
    cross_values: Tensor | None

    def store(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Whole sequences: keys, values [B, N, Hkv, E], each into its slot of `slots` [B]."""
        length = keys.shape[1]
        self.keys[slots, :, :length] = keys.transpose(1, 2)
        self.values[slots, :, :length] = values.transpose(1, 2)

    def store_next(self, slots: Tensor, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """One token of each slot of `slots` [A], at positions `places` [A]: keys, values [A, Hkv, E]."""
        self.keys[slots, :, places], self.values[slots, :, places] = keys, values

    def read(self, count: int, length: int) -> tuple[Tensor, Tensor]:
        """Views [count, length, Hkv, E] of the first `length` keys and values of the first `count` slots."""
        return self.keys[:count, :, :length].transpose(1, 2), self.values[:count, :, :length].transpose(1, 2)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy a sequence of `length` tokens from slot to slot."""
        for tensor in (self.unsmeared, self.cross_keys, self.cross_values):
            if tensor is not None:
                tensor[target] = tensor[source]
        for tensor in (self.keys, self.values):
            tensor[target, :, :length] = tensor[source, :, :length]


class DecodingCache:
    """Tensors of `slots` sequences of at most `capacity` tokens, allocated when the dtype of keys is known.

    num_neighbors K, retrieved_length R: room for the neighbors of one chunk per slot; K = 0: none.
    """

    def __init__(self, model: RetroModel, slots: int, capacity: int, num_neighbors: int, retrieved_length: int) -> None:
        self._model, self._slots, self._capacity = model, slots, capacity
        self._num_neighbors, self._retrieved_length = num_neighbors, retrieved_length
        self._device = model.embedding.weight.device
        self._chunk = model.config.chunk_length
        self.layers: list[LayerCache] = []
        #: Residual stream of the last M tokens after the self-attention of the first RETRO layer, [slots, M, D];
        #: position p lies at p mod M.
        self.history: Tensor | None = None
        #: bool [slots, K R], True = a real token of a neighbor that is kept.
        self.cross_mask: Tensor | None = None
        #: Columns of it that may be True, per slot.
        self.cross_widths = [0] * slots
        #: Positions of self-attention, None where they are learned, and of cross-attention.
        self.rotary: RotaryTable | None = None
        self.cross_rotary: RotaryTable | None = None

    def make_room(self, number: int, keys: Tensor, x: Tensor) -> None:
        """Allocate the cache of layer `number`, in the dtype of `keys`, when it is first needed."""
        if len(self.layers) > number:
            return
        model, config = self._model, self._model.config
        heads, size = keys.shape[2:]

        def empty(*shape: int, dtype: torch.dtype = keys.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self._device)

        retro = self._num_neighbors > 0 and (number + 1) in config.cross_attention_layers
        places = self._num_neighbors * self._retrieved_length
        self.layers.append(
            LayerCache(
                empty(self._slots, heads, self._capacity, size),
                empty(self._slots, heads, self._capacity, size),
                empty(self._slots, 1, heads, size),
                empty(self._slots, heads, places, size) if retro else None,
                empty(self._slots, heads, places, size) if retro else None,
            )
        )
        if number == 0:
            self.rotary = model.self_rotary(self._capacity, x)
            if self._num_neighbors:
                self.cross_rotary = model.cross_rotary(self._retrieved_length, x)
                self.history = empty(self._slots, self._chunk, config.width, dtype=x.dtype)
                self.cross_mask = empty(self._slots, places, dtype=torch.bool)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy a sequence of `length` tokens from slot to slot."""
        for layer in self.layers:
            layer.copy(source, target, length)
        for tensor in (self.history, self.cross_mask):
            if tensor is not None:
                tensor[target] = tensor[source]
        self.cross_widths[target] = self.cross_widths[source]

    def remember(self, slots: Tensor, states: Tensor, lengths: Tensor) -> None:
        """Keep the last M states of sequences [B, N, D] of `lengths` [B] tokens, each in its slot of `slots` [B]."""
        if self.history is None:
            return
        # Of a shorter sequence the places of missing positions hold its first state; `recall`'s caller masks them.
        positions = lengths[:, None] + torch.arange(-self._chunk, 0, device=self._device)
        rows = torch.arange(len(states), device=self._device)[:, None]
        kept = states[rows, positions.clamp(min=0)]
        self.history[slots[:, None], positions % self._chunk] = kept.to(self.history.dtype)

    def remember_next(self, order: Tensor, places: Tensor, states: Tensor) -> None:
        """Keep the states [A, D] of one token of each slot of `order` [A], at positions `places` [A]."""
        if self.history is not None:
            self.history[order, places % self._chunk] = states.to(self.history.dtype)

    def recall(self, slots: list[int], last: list[int]) -> Tensor:
        """The M states up to position `last` of each slot, in order: [rows, M, D]."""
        assert self.history is not None
        steps = torch.arange(1 - self._chunk, 1, device=self._device)
        places = (torch.tensor(last, device=self._device)[:, None] + steps) % self._chunk
        return self.history[torch.tensor(slots, device=self._device)[:, None], places]

    def store_neighbors(self, number: int, slots: list[int], keys: Tensor, values: Tensor) -> None:
        """Keep what layer `number` projects of the neighbors of `slots`: [rows, K R', Hkv, E], R' <= R."""
        cache = self.layers[number]
        assert cache.cross_keys is not None and cache.cross_values is not None
        rows = torch.tensor(slots, device=self._device)
        for kept, new in ((cache.cross_keys, keys), (cache.cross_values, values)):
            kept[rows, :, : new.shape[1]] = new.transpose(1, 2).to(kept.dtype)

    def store_mask(self, slots: list[int], plan: RetrievalPlan, rows: Tensor | None = None) -> None:
        """Say which of the stored neighbor tokens are real: those of these rows of the plan, None = of all."""
        assert self.cross_mask is not None
        width = plan.num_neighbors * plan.longest
        order = torch.tensor(slots, device=self._device)
        self.cross_mask[order] = False
        real = plan.key_mask if plan.key_mask is None or rows is None else plan.key_mask[rows]
        self.cross_mask[order, :width] = True if real is None else real
        for slot in slots:
            self.cross_widths[slot] = width

    def cross_width(self, slots: list[int]) -> int:
        """Columns behind which none of these slots has a real neighbor token."""
        return max(self.cross_widths[slot] for slot in slots)
