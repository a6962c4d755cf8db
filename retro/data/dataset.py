"""Sequences with their neighbors: everything about targets, masks and padding is made here and nowhere else."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Literal

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


class RetroDataset:
    """Sequence i = the query chunks [i L, (i + 1) L), each padded on the right to M tokens; L = N / M.

    The last sequence is filled up with padding. `dataset[i]` is a RetroBatch of one, `dataset.__getitems__(ids)` of
    many; B N L M K R as in RetroBatch.

    Targets: the token at p + 1 of the same document, also across the end of the sequence. Scored (loss_mask_BN): every
    token of every document but its first, once; with score_last_position=False not the one that the last position of a
    full sequence predicts, so that the neighbors of the last chunk serve nothing and cost nothing.

    Neighbors of chunk u serve the positions (u + 1) M - 1 .. (u + 2) M - 2, which predict chunk u + 1. They are masked
    where chunk u + 1 is not of the same document (they would tell one document about another) and where no position
    that they serve is scored.

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
        if sequence_length < 1 or sequence_length % self.chunk_length:
            nearest = max(1, sequence_length // self.chunk_length) * self.chunk_length
            raise ConfigError(
                f"sequence_length: expected a multiple of the chunk length {self.chunk_length}, found "
                f"{sequence_length}; use for instance {nearest}"
            )
        self.sequence_chunks = sequence_length // self.chunk_length
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

    def __len__(self) -> int:
        """Number of sequences."""
        return (self.queries.num_chunks + self.sequence_chunks - 1) // self.sequence_chunks

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
        count, length = self.sequence_chunks, self.chunk_length
        chunks = sample_ids[:, None] * count + np.arange(count)
        chunks[chunks >= self.queries.num_chunks] = -1
        tokens, targets, scored = self._read_sequences(chunks)
        if not self.score_last_position:
            scored[:, -1] = False
        neighbors, mask = None, None
        if self.retrieval != "off":
            # The first position that a chunk's neighbors serve is the chunk's own last one, and its target is the next
            # chunk's first token. It is scored exactly where the next chunk is of the same document and is served.
            useful = scored[:, length - 1 :: length]
            neighbors, mask = self._read_neighbors(chunks, useful)
        return RetroBatch(tokens, targets, scored, neighbors, mask, chunks, sample_ids)

    def _read_sequences(self, chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """chunks int64 [B, L], -1 = padding -> tokens, targets int32 [B, N], bool [B, N]: where targets are real."""
        # One token more than the chunk: the target of its last position lies right behind it in the token store.
        tokens, real = self.queries.gather_neighbors(chunks.reshape(-1), self.pad_id, self.chunk_length + 1)
        shape = (len(chunks), chunks.shape[1] * self.chunk_length)
        return tokens[:, :-1].reshape(shape), tokens[:, 1:].reshape(shape), real[:, 1:].reshape(shape)

    def _read_neighbors(self, chunks: np.ndarray, useful: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Neighbor tokens int32 [B, L, K, R] and mask; nothing is read for chunks that are not useful [B, L]."""
        assert self.database is not None
        ids = self.neighbor_ids(chunks, self.num_neighbors, useful)
        return self.database.gather_neighbors(ids, self.pad_id, self.retrieved_length)

    def neighbor_ids(self, chunks: np.ndarray, k: int, useful: np.ndarray | None = None) -> np.ndarray:
        """Database chunks that each chunk of these sequences retrieves: int64 [B, L, k], nearest first, -1 = none.

        chunks: int64 [B, L], -1 = padding; useful: bool [B, L], the chunks that are looked up (default: all real ones).
        No neighbor is of a document of the sequence (or of a group, where the table excludes those).
        """
        useful = chunks >= 0 if useful is None else useful
        rows = None if self.retrieval == "on" else self._exchange[chunks[useful]]
        ids = np.full((*chunks.shape, k), -1, dtype=np.int64)
        if self._sequence_neighbors is not None:
            ids[useful] = self._sequence_neighbors.find(chunks, useful, k, rows)
        return ids

    @cached_property
    def _sequence_neighbors(self) -> SequenceNeighbors | None:
        """None where retrieval is off."""
        if self.retrieval == "off" or self.database is None or self.neighbors is None:
            return None
        return SequenceNeighbors(self.queries, self.database, self.neighbors)

    def shortage(self, sequences: int = 1024) -> Shortage:
        """How many neighbors chunks lack of `num_neighbors`, over a seeded sample of so many sequences."""
        if self.neighbors is None or self.retrieval == "off":
            return Shortage(0, 0, 0, 0)
        generator = np.random.Generator(np.random.Philox(self.seed))
        # Drawn without a permutation of all sequences: there may be a billion.
        sample = np.sort(generator.choice(len(self), size=min(sequences, len(self)), replace=False, shuffle=False))
        chunks = sample[:, None] * self.sequence_chunks + np.arange(self.sequence_chunks)
        chunks[chunks >= self.queries.num_chunks] = -1
        real = chunks[chunks >= 0]
        ids = self.neighbor_ids(chunks, self.num_neighbors)[chunks >= 0]
        rows = real if self.retrieval == "on" else self._exchange[real]
        missing, unstored = int((ids < 0).sum()), int((self.neighbors.rows(rows, self.num_neighbors) < 0).sum())
        return Shortage(len(ids), ids.size, missing - unstored, unstored)

    @cached_property
    def _exchange(self) -> np.ndarray:
        return derange(self.queries.documents(np.arange(self.queries.num_chunks)), self.seed)

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
