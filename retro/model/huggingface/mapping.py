"""How one of our tensors is made of theirs, and theirs of ours: the tables of the architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Entry:
    """One tensor of ours (name in the state dict) and the tensors of theirs (names without the architecture's prefix)
    that hold the same numbers.

    join: theirs, in order -> ours; split: the inverse.
    """

    ours: str
    theirs: tuple[str, ...]
    join: Callable[[list[Tensor]], Tensor]
    split: Callable[[Tensor], list[Tensor]]

    def their_shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Shapes of theirs where ours has `shape`."""
        return [tuple(part.shape) for part in self.split(torch.empty(shape, device="meta"))]


def same(ours: str, theirs: str) -> Entry:
    """The same tensor under another name."""
    return Entry(ours, (theirs,), lambda parts: parts[0], lambda tensor: [tensor])


def transposed(ours: str, theirs: str) -> Entry:
    """GPT-2's matrices, [in, out] instead of [out, in]."""
    return Entry(ours, (theirs,), lambda parts: parts[0].t(), lambda tensor: [tensor.t()])


def stacked(ours: str, theirs: tuple[str, ...], rows: tuple[int, ...]) -> Entry:
    """Ours holds `rows` of each of theirs, one below the other."""
    return Entry(ours, theirs, torch.cat, lambda tensor: list(tensor.split(rows)))


def interleaved(ours: str, theirs: str, heads: int) -> Entry:
    """GPT-NeoX's fused projection: rows of query, key and value per head; ours: all queries, all keys, all values."""

    def join(parts: list[Tensor]) -> Tensor:
        return parts[0].unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)

    def split(tensor: Tensor) -> list[Tensor]:
        return [tensor.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)]

    return Entry(ours, (theirs,), join, split)


def with_bias(
    make: Callable[[str, str], Entry], ours: str, theirs: str, bias: bool = True, bias_as: Callable[..., Entry] = same
) -> Iterator[Entry]:
    """Entries of a layer's weight, by `make`, and of its bias."""
    yield make(f"{ours}.weight", f"{theirs}.weight")
    if bias:
        yield bias_as(f"{ours}.bias", f"{theirs}.bias")
