"""The order of training samples: a pure function of (seed, epoch), the same for every model, world size and worker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


#: Hashes of parts of a stream are added modulo this.
HASH_MODULUS = 1 << 64


def sample_hash(start: int, samples: np.ndarray) -> int:
    """Hash, 0 to 2^64 - 1, of the samples int64 [n] at the positions start..start+n-1 of the stream.

    The hash of a stream is the sum modulo 2^64 of those of its parts, in whatever order and by whichever process they
    were taken; an exchange, a gap or a repetition changes it. Each pair (position, sample) is mixed by the finaliser of
    splitmix64 (Steele, Lea and Flood 2014), twice: it tells accidents, it is no protection against a forger.
    """
    positions = np.arange(start, start + len(samples), dtype=np.uint64)
    mixed = _mix(_mix(positions) ^ np.asarray(samples).astype(np.uint64))
    return int(mixed.sum(dtype=np.uint64))


def split_hash(value: int) -> list[float]:
    """The hash as 4 numbers below 2^16, which any floating-point format that sums are exchanged in holds exactly."""
    return [float(value >> shift & 0xFFFF) for shift in (0, 16, 32, 48)]


def join_hashes(parts: Iterable[Sequence[float]]) -> int:
    """Sum modulo 2^64 of hashes that were split."""
    return sum(int(number) << 16 * place for part in parts for place, number in enumerate(part)) % HASH_MODULUS


def _mix(values: np.ndarray) -> np.ndarray:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
