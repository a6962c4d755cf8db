"""Micro-batches for training, in the global sample order, from any position, for any number of ranks and workers."""

from __future__ import annotations

import math
import queue
import signal
import threading
from collections.abc import Generator, Iterator
from multiprocessing import resource_tracker
from typing import Any, Protocol

import numpy as np

from retro.config.errors import ConfigError
from retro.data.batch import RetroBatch
from retro.data.length_order import SampleSource
from retro.data.order import HASH_MODULUS, SampleStream, sample_hash

_FOR_THE_TRAINER = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class SequenceSource(Protocol):
    """Numbered sequences: what a data set is to the loader."""

    def __len__(self) -> int:
        """Number of sequences."""

    def __getitems__(self, samples: list[int] | np.ndarray, /) -> RetroBatch:
        """The sequences of these numbers, in this order."""


class TrainLoader:
    """Endless micro-batches of one rank.

    Step t trains on the positions [start_sample + t G, start_sample + (t + 1) G) of the sample stream (order.py), G =
    global_batch. Rank r of W takes the r-th of W equal parts of them, cut into micro-batches. So the samples of a step
    depend on neither W nor the workers, and training continues from any number of samples, with another W or G.

    micro_batch None: the rank's whole part. stream: the sample stream, None = the data set's in seeded random order.
    num_workers 0: a thread prepares `prefetch` micro-batches ahead; more:
    that many processes do. Iterating again continues after the last complete step; batches prepared but not taken are
    prepared again.
    Raises ConfigError if the sizes do not divide.
    """

    def __init__(
        self,
        dataset: SequenceSource,
        *,
        global_batch: int,
        micro_batch: int | None = None,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        start_sample: int = 0,
        num_workers: int = 0,
        prefetch: int = 2,
        stream: SampleSource | None = None,
    ) -> None:
        micro_batch = split_batch(global_batch, micro_batch, world)
        for name, value in (("start_sample", start_sample), ("num_workers", num_workers), ("seed", seed)):
            if value < 0:
                raise ConfigError(f"{name}: expected 0 or more, found {value}")
        if not 0 <= rank < world:
            raise ConfigError(f"rank: expected 0 to {world - 1}, found {rank}")
        if len(dataset) == 0:
            raise ConfigError("the data set has no sequence to train on")
        self.dataset, self.global_batch, self.micro_batch = dataset, global_batch, micro_batch
        self.rank, self.world, self.seed = rank, world, seed
        self.num_workers, self.prefetch = num_workers, max(1, prefetch)
        self._stream = stream
        self.micro_batches_per_step = global_batch // (micro_batch * world)
        self._start = start_sample
        self._taken = 0  # micro-batches
        self._hash = 0

    @property
    def samples_consumed(self) -> int:
        """Position in the stream after the last complete step whose micro-batches were all taken: what a checkpoint
        keeps and `start_sample` takes."""
        return self._start + self._taken // self.micro_batches_per_step * self.global_batch

    def seek(self, start_sample: int) -> None:
        """Continue at this position of the stream. Iterators made before must not be used any more."""
        self._start, self._taken, self._hash = start_sample, 0, 0

    def take_hash(self) -> int:
        """`sample_hash` (order.py) of what this rank has taken since the last call or `iter`, from the sample ids in
        the batches themselves. Called after a complete step; summed over the ranks it is that of the step's samples."""
        taken, self._hash = self._hash, 0
        return taken

    def __iter__(self) -> Iterator[RetroBatch]:
        self._taken -= self._taken % self.micro_batches_per_step  # a step is taken whole
        self._hash = 0
        batches = self._from_workers() if self.num_workers else self._from_thread()
        try:
            for batch in batches:
                place = self._taken % self.micro_batches_per_step * self.micro_batch
                first = self.samples_consumed + self.rank * (self.global_batch // self.world) + place
                self._hash = (self._hash + sample_hash(first, batch.sample_ids_B)) % HASH_MODULUS
                self._taken += 1
                yield batch
        finally:
            batches.close()

    def _sample_ids(self) -> Iterator[list[int]]:
        """Sample ids of this rank's micro-batches from the current position on."""
        stream = self._stream or SampleStream(len(self.dataset), self.seed)
        share = self.global_batch // self.world
        position = self.samples_consumed
        while True:
            first = position + self.rank * share
            ids = stream.take(first, first + share)
            for start in range(0, share, self.micro_batch):
                yield ids[start : start + self.micro_batch].tolist()
            position += self.global_batch

    def _from_thread(self) -> Generator[RetroBatch, None, None]:
        ready: queue.Queue[RetroBatch | BaseException] = queue.Queue(maxsize=self.prefetch)
        stop = threading.Event()
        ids = self._sample_ids()

        def put(item: RetroBatch | BaseException) -> bool:
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def work() -> None:
            try:
                while put(self.dataset.__getitems__(next(ids))):
                    pass
            except BaseException as error:  # raised again where the batch is awaited
                put(error)

        thread = threading.Thread(target=work, name="retro-loader", daemon=True)
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    def _from_workers(self) -> Generator[RetroBatch, None, None]:
        from torch.utils.data import DataLoader

        loader: Any = DataLoader(
            self.dataset,  # type: ignore[arg-type]
            batch_sampler=_Batches(self._sample_ids()),
            collate_fn=_as_is,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch,
            # A forked child of a process whose libraries have started threads can hang.
            multiprocessing_context="spawn",
            worker_init_fn=_leave_signals_to_the_trainer,
        )
        # They inherit this, and so live through signals that come before `worker_init_fn` is reached.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_TRAINER)
        try:
            resource_tracker.ensure_running()  # otherwise started below, which takes the block off again
            signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_TRAINER)
            batches = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            yield from batches
        finally:
            batches._shutdown_workers()


class _Batches:
    """What DataLoader wants of a batch sampler: something to iterate."""

    def __init__(self, ids: Iterator[list[int]]) -> None:
        self._ids = ids

    def __iter__(self) -> Iterator[list[int]]:
        return self._ids


def split_batch(global_batch: int, micro_batch: int | None, world: int) -> int:
    """Sequences per micro-batch of each of `world` processes that see different sequences; None = the whole share.

    Raises ConfigError, with the values that would do, unless every process gets as many whole micro-batches as every
    other.
    """
    for name, value in (("global_batch", global_batch), ("micro_batch", micro_batch), ("world", world)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}: expected 1 or more, found {value}")
    unit = micro_batch or 1
    if global_batch % (unit * world) == 0:
        return micro_batch or global_batch // world
    if micro_batch is None:
        expected = f"a multiple of the number of processes {world}"
    else:
        expected = f"a multiple of micro_batch {unit} x {world} processes = {unit * world} sequences"
    remedies = []
    if global_batch % unit == 0:
        remedies.append(f"{_list_some(_divisors(global_batch // unit), world)} process(es)")
    if micro_batch is not None and global_batch % world == 0:
        remedies.append(f"micro_batch={_list_some(_divisors(global_batch // world), unit)}")
    above = -(-global_batch // (unit * world)) * unit * world
    remedies.append(f"for a new run global_batch={above}")
    raise ConfigError(f"global_batch: expected {expected}, found {global_batch}; use {', or '.join(remedies)}")


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _list_some(values: list[int], about: int) -> str:
    """The two below and the two above `about`: `1, 2 or 4`."""
    below, above = [v for v in values if v <= about][-2:], [v for v in values if v > about][:2]
    *most, last = map(str, below + above)
    return f"{', '.join(most)} or {last}" if most else last


def _leave_signals_to_the_trainer(_: int) -> None:
    """Ctrl-C and a scheduler's signals reach all processes of a job; the trainer finishes its step and saves, and for
    that it needs its workers. They end with it (torch's watchdog)."""
    for number in _FOR_THE_TRAINER:
        signal.signal(number, signal.SIG_IGN)


def _as_is(batch: Any) -> Any:
    return batch


def iter_batches(dataset: SequenceSource, batch: int, limit: int | None = None) -> Iterator[RetroBatch]:
    """The sequences 0, 1, ... in order, `batch` at a time, each once; limit: only the first so many sequences."""
    count = len(dataset) if limit is None else min(limit, len(dataset))
    for start in range(0, count, batch):
        yield dataset.__getitems__(np.arange(start, min(start + batch, count)))
