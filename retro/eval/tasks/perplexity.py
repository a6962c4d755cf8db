"""Perplexity with retrieval on, off and shuffled, over the same sequences and the same scored tokens for every model.

A response row is one chunk of the split with at least one scored token:

    {"sequence", "index" (place in the sequence), "chunk" (id in the split), "document" (id), "document_chunk" (place in
     the document), "tokens", "bytes" (scored ones), "overlap" (r(C) or None), "neighbors" (database chunks that serve
     the chunk, those of the chunk before; [] if none), "bits": {mode: float or None},
     "logprobs": {mode: [natural log of each scored token, or None]}}

A chunk's scored tokens are all but the first of its document. r(C) uses the neighbor table alone, so that a GPT's rows
have it too (Borgeaud et al. 2022, section 2.6).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retro.data.chunk_store import ChunkStore
from retro.data.dataset import RetroDataset
from retro.data.neighbor_table import NeighborTable
from retro.data.tokenizer import Tokenizer
from retro.eval.metrics.bits_per_byte import PARTS, Row, bits_per_byte, part_of
from retro.eval.metrics.leakage import leakage_curve
from retro.eval.metrics.positions import loss_by_position
from retro.eval.tasks.base import Block
from retro.inference.evidence import document_id, neighbor_texts
from retro.inference.language_model import LanguageModel
from retro.retrieval.overlap import overlap_ratio

NAME = "perplexity"
VERSION = 1


class PerplexityTask:
    """Scores a split in blocks of sequences."""

    name = NAME
    version = VERSION
    unit = "sequences"

    def __init__(
        self,
        datasets: Mapping[str, RetroDataset],
        tokenizer: Tokenizer,
        *,
        table: NeighborTable | None,
        max_sequences: int | None = None,
        batch: int = 8,
        block_batches: int = 8,
        overlap_neighbors: int = 10,
    ) -> None:
        """datasets: by mode, over the same queries, with score_last_position; table: for r(C), None = unknown."""
        first = next(iter(datasets.values()))
        for dataset in datasets.values():
            if dataset.queries.fingerprint != first.queries.fingerprint or not dataset.score_last_position:
                raise ValueError("datasets: expected one split for all modes, with score_last_position=True")
            if dataset.isolate_documents != first.isolate_documents:
                raise ValueError("datasets: expected all modes to isolate documents, or none")
        self.datasets, self.tokenizer, self.table = dict(datasets), tokenizer, table
        self.queries: ChunkStore = first.queries
        self.sequence_length, self.chunk_length = first.sequence_length, first.chunk_length
        self.sequence_chunks = first.sequence_length // first.chunk_length
        self.isolate_documents = first.isolate_documents
        self.batch, self.units_per_block = batch, batch * block_batches
        self.num_units = len(first) if max_sequences is None else min(max_sequences, len(first))
        self.num_blocks = math.ceil(self.num_units / self.units_per_block)
        self.overlap_neighbors = min(overlap_neighbors, table.k) if table is not None else 0
        self._byte_lengths = tokenizer.token_byte_lengths().astype(np.int64)
        self._specials = np.array(sorted({tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}))

    def identity(self) -> dict[str, Any]:
        """See Task."""
        return {
            "queries": self.queries.fingerprint,
            "neighbors": self.table.fingerprint if self.table is not None else None,
            "modes": list(self.datasets),
            "sequence_length": self.sequence_length,
            "chunk_length": self.chunk_length,
            "num_neighbors": {m: d.num_neighbors for m, d in self.datasets.items() if d.retrieval != "off"},
            "shuffle_seed": {m: d.seed for m, d in self.datasets.items() if d.retrieval == "shuffled"},
            "sequences": self.num_units,
            # A matrix product may round differently in another batch.
            "batch": self.batch,
            "block": self.units_per_block,
            "overlap_neighbors": self.overlap_neighbors,
            **({"isolate_documents": True} if self.isolate_documents else {}),
        }

    def run_block(self, number: int, model: LanguageModel, carry: Any) -> Block:
        """See Task. carry: {mode: log-probability of the first token of the next sequence}, which the last position of
        a sequence predicts."""
        start = number * self.units_per_block
        stop = min(start + self.units_per_block, self.num_units)
        ids = np.arange(start, stop)
        seconds: dict[str, float] = {}
        tokens: dict[str, int] = {}
        logprobs: dict[str, np.ndarray] = {}
        rest: dict[str, float | None] = {}
        scored = None
        for mode, dataset in self.datasets.items():
            parts, masks, spent, read = [], [], 0.0, 0
            for first in range(start, stop, self.batch):
                batch = dataset.__getitems__(np.arange(first, min(first + self.batch, stop)))
                begin = time.perf_counter()
                parts.append(np.asarray(model.score_batch(batch), dtype=np.float64))
                spent += time.perf_counter() - begin
                masks.append(batch.loss_mask_BN)
                read += int((batch.chunk_ids_BL >= 0).sum()) * self.chunk_length
            values, mask = np.concatenate(parts).reshape(-1), np.concatenate(masks).reshape(-1)
            if scored is not None and not np.array_equal(scored, mask):
                raise RuntimeError("the modes score different tokens; please report this")
            scored = mask
            # Flat place t of the block is predicted by place t - 1; place 0 by the block before.
            before = (carry or {}).get(mode)
            logprobs[mode] = np.concatenate([[np.nan if before is None else before], values[:-1]])
            last = float(values[-1])
            rest[mode] = last if mask[-1] and math.isfinite(last) else None
            seconds[mode], tokens[mode] = spent, read
        assert scored is not None
        is_target = np.concatenate([[self._continues(start)], scored[:-1]])
        rows = self._rows(ids, logprobs, is_target)
        return Block(rows, rest, seconds, tokens, len(ids))

    def _continues(self, sequence: int) -> bool:
        """Whether a sequence begins in the middle of a document, so that its first token is a target."""
        chunk = sequence * self.sequence_chunks
        return sequence > 0 and bool(self._document_chunks(np.array([chunk]))[0] > 0)

    def _document_chunks(self, chunks: np.ndarray) -> np.ndarray:
        offsets = self.queries.tokens.document_offsets[self.queries.documents(chunks)]
        return (self.queries.starts(chunks) - offsets) // self.chunk_length

    def _rows(
        self, sequences: np.ndarray, logprobs: Mapping[str, np.ndarray], is_target: np.ndarray
    ) -> list[dict[str, Any]]:
        length = self.sequence_chunks
        chunks = np.arange(sequences[0] * length, min((sequences[-1] + 1) * length, self.queries.num_chunks))
        tokens, real = self.queries.gather(chunks, self.tokenizer.pad_id)
        targets = is_target[: len(chunks) * self.chunk_length].reshape(len(chunks), self.chunk_length) & real
        by_mode = {m: v[: targets.size].reshape(targets.shape) for m, v in logprobs.items()}
        num_bytes = np.where(targets, self._byte_lengths[np.where(real, tokens, 0)], 0).sum(axis=1)
        documents = self.queries.documents(chunks)
        places = self._document_chunks(chunks)
        overlaps = self._overlaps(chunks, tokens, real)
        serving = self._serving(chunks, places)
        rows = []
        for i, chunk in enumerate(chunks.tolist()):
            if not targets[i].any():
                continue
            scores = {mode: values[i][targets[i]] for mode, values in by_mode.items()}
            rows.append(
                {
                    "sequence": chunk // length,
                    "index": chunk % length,
                    "chunk": chunk,
                    "document": self.queries.tokens.document_record(int(documents[i]))["id"],
                    "document_chunk": int(places[i]),
                    "tokens": int(targets[i].sum()),
                    "bytes": int(num_bytes[i]),
                    "overlap": None if overlaps is None else round(float(overlaps[i]), 6),
                    "neighbors": serving[i],
                    "bits": {mode: _bits(values) for mode, values in scores.items()},
                    "logprobs": {
                        mode: [round(v, 4) if math.isfinite(v) else None for v in values.tolist()]
                        for mode, values in scores.items()
                    },
                }
            )
        return rows

    def _overlaps(self, chunks: np.ndarray, tokens: np.ndarray, real: np.ndarray) -> np.ndarray | None:
        """r(C) over text tokens: begin and end of text are no text that could leak."""
        if self.table is None:
            return None
        ids = self.table.rows(chunks, self.overlap_neighbors)
        neighbors, mask = self.table.database.gather_neighbors(ids, self.tokenizer.pad_id)
        text = real & ~np.isin(tokens, self._specials)
        return overlap_ratio(tokens, neighbors, text, mask & ~np.isin(neighbors, self._specials))

    def _serving(self, chunks: np.ndarray, places: np.ndarray) -> list[list[int]]:
        """Neighbors that serve each chunk when retrieval is on: those of the chunk before, in sequence and document."""
        dataset = self.datasets.get("on")
        if dataset is None or self.table is None:
            return [[] for _ in chunks]
        served = (chunks % self.sequence_chunks > 0) & (places > 0)
        whole = np.full(-(-len(chunks) // self.sequence_chunks) * self.sequence_chunks, -1, dtype=np.int64)
        whole[: len(chunks)] = chunks
        sequences = whole.reshape(-1, self.sequence_chunks)
        found = dataset.neighbor_ids(sequences, dataset.num_neighbors).reshape(len(whole), -1)
        ids = np.full((len(chunks), dataset.num_neighbors), -1, dtype=np.int64)
        ids[served] = found[np.flatnonzero(served) - 1]
        return [[int(i) for i in row if i >= 0] for row in ids]

    def samples(self, rows: Sequence[Row], count: int, seed: int) -> list[dict[str, Any]]:
        """Chunks for the report's reader: {"document", "chunk", "pieces", "logprobs", "context", "neighbors"}.

        A seeded choice, the same for every model of the release, of chunks that retrieval serves and that are at least
        half full, in the order of the rows.
        """
        fit = [row for row in rows if part_of(row) == "served" and 2 * row["tokens"] >= self.chunk_length]
        generator = np.random.Generator(np.random.Philox(seed))
        chosen = sorted(generator.permutation(len(fit))[:count].tolist())
        return [self._sample(fit[i]) for i in chosen]

    def _sample(self, row: Row) -> dict[str, Any]:
        pair, real = self.queries.gather(np.array([row["chunk"] - 1, row["chunk"]]), self.tokenizer.pad_id)
        context, own = pair[0][real[0]].tolist(), pair[1][real[1]].tolist()
        neighbors = []
        if row["neighbors"] and self.table is not None:
            before = np.array([row["chunk"] - 1])
            # Some of the stored neighbors may be excluded in this sequence.
            stored = zip(self.table.rows(before)[0].tolist(), self.table.distances(before)[0].tolist(), strict=True)
            distances = dict(stored)
            for chunk in row["neighbors"]:
                distance = distances[chunk]
                text, continuation = neighbor_texts(self.table.database, self.tokenizer, chunk)
                neighbors.append(
                    {
                        "document": document_id(self.table.database, chunk),
                        "chunk": chunk,
                        "text": text,
                        "continuation": continuation,
                        "distance": round(distance, 6),
                    }
                )
        return {
            "document": row["document"],
            "chunk": row["chunk"],
            "pieces": self.tokenizer.pieces(own),
            "logprobs": row["logprobs"],
            "context": self.tokenizer.decode(context),
            "neighbors": neighbors,
        }


def perplexity_results(rows: Sequence[Row], modes: Sequence[str], chunk_length: int) -> dict[str, Any]:
    """The figures of results.json that are a function of the rows alone."""
    return {
        "modes": {mode: bits_per_byte(rows, mode) for mode in modes},
        "parts": {
            part: {mode: bits_per_byte([row for row in rows if part_of(row) == part], mode) for mode in modes}
            for part in PARTS
        },
        "first_chunk": {
            mode: bits_per_byte([row for row in rows if part_of(row) == "first_chunk"], mode) for mode in modes
        },
        "leakage": leakage_curve(rows, modes),
        "position": loss_by_position(rows, modes, chunk_length),
        "chunks": len(rows),
        "documents": len({row["document"] for row in rows}),
    }


def _bits(logprobs: np.ndarray) -> float | None:
    """Bits of a chunk; None if a token has no score: a missing score is missing, not 0."""
    return round(float(-logprobs.sum()) / math.log(2), 6) if np.isfinite(logprobs).all() else None
