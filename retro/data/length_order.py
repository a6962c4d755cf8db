"""Batches of samples of similar length, in an order that is still a function of the seed alone."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class SampleSource(Protocol):
    """An endless stream of sample numbers: `SampleStream`, or one made of it."""

    def take(self, start: int, stop: int) -> np.ndarray:
        """Samples int64 [stop - start] at these positions."""


class LengthSortedStream:
    """The samples of `stream`, of which those of every `window` batches of `batch` are sorted by length and cut into
    batches again, which follow each other in a seeded order.

    lengths float [samples]. All samples of the window are the same, so every epoch is still seen whole (the window at
    its end reaches into the next one), and position g depends on the seed, `batch` and `window` alone.
    """

    def __init__(self, stream: SampleSource, lengths: np.ndarray, *, batch: int, window: int, seed: int) -> None:
        self._stream, self._lengths = stream, lengths
        self._batch, self._window, self._seed = batch, window, seed
        self._number, self._order = -1, np.zeros(0, dtype=np.int64)

    def take(self, start: int, stop: int) -> np.ndarray:
        """See SampleSource."""
        size = self._batch * self._window
        parts = [np.zeros(0, dtype=np.int64)]
        while start < stop:
            number, place = divmod(start, size)
            if number != self._number:
                self._sort(number, size)
            part = self._order[place : place + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def _sort(self, number: int, size: int) -> None:
        samples = self._stream.take(number * size, (number + 1) * size)
        batches = samples[np.argsort(self._lengths[samples], kind="stable")].reshape(self._window, self._batch)
        # Another key than that of the epochs' orders (retro/data/order.py), whose second half is the epoch.
        key = np.array([self._seed, (1 << 63) + number], dtype=np.uint64)
        order = np.argsort(np.random.Philox(key=key).random_raw(self._window), kind="stable")
        self._number, self._order = number, batches[order].reshape(-1)
