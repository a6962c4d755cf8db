"""What the layouts of text into sequences share: options and their checks, controls, and figures over a sample."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Literal, Required, TypedDict

import numpy as np

from retro.config.errors import ConfigError
from retro.data.batch import RetroBatch
from retro.data.chunk_store import ChunkStore
from retro.data.neighbor_table import NeighborTable
from retro.data.release_match import check_same_tokens
from retro.data.sequence_neighbors import SequenceNeighbors

Retrieval = Literal["on", "off", "shuffled"]


@dataclasses.dataclass(frozen=True)
class Shortage:
    """Neighbors that are not there, over some chunks: `excluded`, because the sequence excludes so many of the stored
    ones; `unstored`, because the search found no more. entries: chunks times neighbors."""

    chunks: int
    entries: int
    excluded: int
    unstored: int


class Options(TypedDict, total=False):
    """Keyword arguments of TextDataset."""

    sequence_length: Required[int]
    num_neighbors: int
    pad_id: int | None
    retrieval: Retrieval
    seed: int
    score_last_position: bool
    retrieved_length: int | None


class TextDataset(ABC):
    """The documents of a split as sequences of N tokens, laid out by RetroDataset or PackedDataset.

    `dataset[i]` is a RetroBatch of one, `dataset.__getitems__(ids)` of many.

    retrieval: "on"; "off" (no neighbors); "shuffled", the control: each chunk has the neighbors of another chunk of
    the data set, of another document where there is one, except those that are of a document of its own sequence.

    Raises ConfigError for options that do not fit each other and ArtifactMismatchError for artifacts that do not.
    """

    def __init__(
        self,
        queries: ChunkStore,
        database: ChunkStore | None,
        neighbors: NeighborTable | None,
        *,
        sequence_length: int,
        num_neighbors: int = 2,
        pad_id: int | None = None,
        retrieval: Retrieval = "on",
        seed: int = 0,
        score_last_position: bool = False,
        retrieved_length: int | None = None,
    ) -> None:
        """pad_id: None = what the tokenizer pads with; retrieved_length: R, default twice the chunk length of the
        database; seed: of the shuffled control."""
        self.queries, self.database, self.neighbors = queries, database, neighbors
        self.chunk_length = queries.chunk_length
        self.sequence_length, self.num_neighbors = sequence_length, num_neighbors
        self.pad_id = queries.tokens.pad_id if pad_id is None else pad_id
        self.retrieval, self.seed, self.score_last_position = retrieval, seed, score_last_position
        self._check_sequence_length()
        if retrieval not in ("on", "off", "shuffled"):
            raise ConfigError(f"retrieval: expected 'on', 'off' or 'shuffled', found {retrieval!r}")
        if seed < 0:
            raise ConfigError(f"seed: expected 0 or more, found {seed}")
        self.retrieved_length = 0
        if retrieval != "off":
            self._check_retrieval()
            assert database is not None
            self.retrieved_length = 2 * database.chunk_length if retrieved_length is None else retrieved_length
            if self.retrieved_length < 1:
                raise ConfigError(f"retrieved_length: expected 1 or more, found {retrieved_length}")
        if retrieval == "shuffled" and queries.num_chunks < 2:
            raise ConfigError("retrieval 'shuffled' needs at least two chunks to exchange neighbors")

    @abstractmethod
    def _check_sequence_length(self) -> None:
        """Raise ConfigError for a length that the layout cannot have."""

    def _check_retrieval(self) -> None:
        if self.database is None or self.neighbors is None:
            raise ConfigError(
                f"retrieval {self.retrieval!r} needs a database and a neighbor table, and this split has none; "
                "run find_neighbors for it, or set retrieval to 'off'"
            )
        check_same_tokens(self.queries.tokens, self.database.tokens)
        if not 1 <= self.num_neighbors <= self.neighbors.k:
            raise ConfigError(
                f"num_neighbors: expected 1 to {self.neighbors.k}, which {self.neighbors.folder} holds, found "
                f"{self.num_neighbors}; lower it, or run find_neighbors with keep={self.num_neighbors}"
            )

    @abstractmethod
    def __len__(self) -> int:
        """Number of sequences."""

    def __getitem__(self, sample: int) -> RetroBatch:
        """One sequence, as a batch of one."""
        return self.__getitems__([sample])

    def __getitems__(self, samples: list[int] | np.ndarray) -> RetroBatch:
        """The sequences of the given numbers, in this order. Raises IndexError for one that there is not."""
        sample_ids = np.asarray(samples, dtype=np.int64).reshape(-1)
        if len(sample_ids) and not 0 <= int(sample_ids.min()) <= int(sample_ids.max()) < len(self):
            raise IndexError(
                f"sequences: expected 0 to {len(self) - 1}, found {sample_ids.min()} to {sample_ids.max()}"
            )
        return self._batch(sample_ids)

    @abstractmethod
    def _batch(self, sample_ids: np.ndarray) -> RetroBatch:
        """The sequences int64 [B], which are there."""

    @cached_property
    def _sequence_neighbors(self) -> SequenceNeighbors | None:
        """None where retrieval is off."""
        if self.retrieval == "off" or self.database is None or self.neighbors is None:
            return None
        return SequenceNeighbors(self.queries, self.database, self.neighbors)

    def _table_rows(self, chunks: np.ndarray) -> np.ndarray | None:
        """Rows of the neighbor table that the chunks int64 [n] are given; None = their own."""
        return None if self.retrieval == "on" else self._exchange[chunks]

    @cached_property
    def _exchange(self) -> np.ndarray:
        return derange(self.queries.documents(np.arange(self.queries.num_chunks)), self.seed)

    def _sample(self, sequences: int) -> np.ndarray:
        """Numbers int64 [n] of at most so many sequences, ascending: a seeded choice."""
        generator = np.random.Generator(np.random.Philox(self.seed))
        # Drawn without a permutation of all sequences: there may be a billion.
        return np.sort(generator.choice(len(self), size=min(sequences, len(self)), replace=False, shuffle=False))

    def shortage(self, sequences: int = 1024) -> Shortage:
        """How many neighbors chunks lack of `num_neighbors`, over a seeded sample of so many sequences."""
        if self.neighbors is None or self.retrieval == "off":
            return Shortage(0, 0, 0, 0)
        chunks, ids = self._retrieving_chunks(self._sample(sequences))
        rows = self._table_rows(chunks)
        stored = self.neighbors.rows(chunks if rows is None else rows, self.num_neighbors)
        missing, unstored = int((ids < 0).sum()), int((stored < 0).sum())
        return Shortage(len(ids), ids.size, missing - unstored, unstored)

    @abstractmethod
    def _retrieving_chunks(self, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(query chunks int64 [n], their neighbors int64 [n, K], -1 = none) of the sequences int64 [B]."""

    @abstractmethod
    def padding_share(self, sequences: int = 1024) -> float:
        """Share of the positions that hold padding, 0 to 1, over a seeded sample of so many sequences at least."""

    def verify(self) -> None:
        """Check the artifacts as a whole; reads them all. Raises ArtifactCorruptError."""
        self.queries.verify()
        if self.database is not None and self.database.folder != self.queries.folder:
            self.database.verify()
        if self.neighbors is not None:
            self.neighbors.verify()


def derange(documents: np.ndarray, seed: int) -> np.ndarray:
    """Permutation int64 [n] without a fixed point, a pure function of its arguments: entry i is the chunk whose
    neighbors chunk i is given, of another document wherever the documents int64 [n] allow it to be found."""
    count = len(documents)
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, 0x5AFF1E], dtype=np.uint64)))
    cycle = generator.permutation(count)
    # One cycle through all chunks in random order has no fixed point.
    out = np.empty(count, dtype=np.int64)
    out[cycle] = np.roll(cycle, -1)
    for i in np.flatnonzero(documents[out] == documents):
        if documents[out[i]] != documents[i]:
            continue  # an earlier exchange has mended it
        for tries in (64, 4096):
            partners = generator.integers(0, count, size=tries)
            good = (documents[out[partners]] != documents[i]) & (documents[out[i]] != documents[partners])
            if good.any():
                j = partners[int(np.argmax(good))]
                out[i], out[j] = out[j], out[i]
                break
    return out
