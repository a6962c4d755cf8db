"""The order of training samples: a pure function of (seed, epoch), the same for every model, world size and worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

#: About so many samples are sorted at a time.
_WINDOW, _BLOCK = 1 << 20, 1 << 20


def sample_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [num_samples]: the permutation of one epoch.

    Sorted random keys of a counter-based generator, whose stream numpy guarantees across versions.
    """
    return np.argsort(_keys(num_samples, seed, epoch), kind="stable").astype(np.int64)


def _keys(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(num_samples)


class SampleStream:
    """The endless concatenation of all epochs' orders; position g is sample `sample_order(n, seed, g // n)[g % n]`.

    A large epoch is sorted piece by piece, as it is needed: sorting hundreds of millions of keys at once would keep
    every process waiting for a minute at the start and at each new epoch. Memory: 8 bytes per sample.
    """

    def __init__(self, num_samples: int, seed: int, window: int = _WINDOW) -> None:
        """window: samples to sort at a time, about."""
        if num_samples < 1:
            raise ValueError("a stream needs at least one sample")
        self.num_samples, self.seed = num_samples, seed
        # Pieces are the keys that agree in so many leading bits.
        self._bits = max(0, (num_samples // window).bit_length())
        self._epoch = -1
        self._keys = np.zeros(0, dtype=np.uint64)
        self._ends = np.zeros(0, dtype=np.int64)  # of the pieces, in the epoch's order
        self._first, self._order = 0, np.zeros(0, dtype=np.int64)  # the piece at hand

    def take(self, start: int, stop: int) -> np.ndarray:
        """Samples int64 [stop - start] at positions start..stop-1. Batches at the end of an epoch reach into the next
        one, so every epoch is seen whole and nothing is dropped."""
        parts = [np.zeros(0, dtype=np.int64)]
        while start < stop:
            epoch, place = divmod(start, self.num_samples)
            if epoch != self._epoch or not 0 <= place - self._first < len(self._order):
                self._sort(epoch, place)
            part = self._order[place - self._first :][: stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def _sort(self, epoch: int, place: int) -> None:
        """Make the piece with this place of the epoch's order the one at hand."""
        if epoch != self._epoch:
            self._keys = np.zeros(0, dtype=np.uint64)  # let go of the old before the new
            self._keys = _keys(self.num_samples, self.seed, epoch)
            counts = np.zeros(1 << self._bits, dtype=np.int64)
            for block in self._blocks():
                counts += np.bincount(self._pieces(block), minlength=len(counts))
            self._epoch, self._ends = epoch, np.cumsum(counts)
        piece = int(np.searchsorted(self._ends, place, side="right"))
        self._first = int(self._ends[piece - 1]) if piece else 0
        found = [np.flatnonzero(self._pieces(block) == piece) + i * _BLOCK for i, block in enumerate(self._blocks())]
        samples = np.concatenate(found)
        self._order = samples[np.argsort(self._keys[samples], kind="stable")]

    def _blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, self.num_samples, _BLOCK):
            yield self._keys[start : start + _BLOCK]

    def _pieces(self, keys: np.ndarray) -> np.ndarray:
        """Number of the piece of each key."""
        if self._bits == 0:
            return np.zeros(len(keys), dtype=np.int64)
        return (keys >> np.uint64(64 - self._bits)).astype(np.int64)


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
