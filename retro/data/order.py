"""The order of training samples: a pure function of (seed, epoch), the same for every model, world size and worker."""

from __future__ import annotations

import numpy as np


def sample_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [num_samples]: the permutation of one epoch.

    Sorted random keys of a counter-based generator, whose stream numpy guarantees across versions.
    """
    keys = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(num_samples)
    return np.argsort(keys, kind="stable").astype(np.int64)


class SampleStream:
    """The endless concatenation of all epochs' orders; position g is sample `sample_order(n, seed, g // n)[g % n]`."""

    def __init__(self, num_samples: int, seed: int) -> None:
        if num_samples < 1:
            raise ValueError("a stream needs at least one sample")
        self.num_samples, self.seed = num_samples, seed
        self._epoch = -1
        self._order = np.zeros(0, dtype=np.int64)

    def take(self, start: int, stop: int) -> np.ndarray:
        """Samples int64 [stop - start] at positions start..stop-1. Batches at the end of an epoch reach into the next
        one, so every epoch is seen whole and nothing is dropped."""
        parts = [np.zeros(0, dtype=np.int64)]
        while start < stop:
            epoch, first = divmod(start, self.num_samples)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, sample_order(self.num_samples, self.seed, epoch)
            part = self._order[first : first + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)
