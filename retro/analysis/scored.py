"""The responses of a perplexity evaluation as arrays, and the check that runs were scored on the same text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retro.analysis.runs import Evaluation, Run
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError


@dataclasses.dataclass(frozen=True)
class ScoredChunks:
    """C scored chunks in file order.

    chunks, sequences, indexes, documents, document_chunks, tokens, num_bytes: int64 [C] (`indexes` = place in the
    sequence, `document_chunks` = place in the document, `documents` = number of the document among the scored ones);
    overlaps: float64 [C], r(C) of RETRO 2.6 (Borgeaud et al.), NaN = not measured; bits: mode -> float64 [C], NaN = the
    model gave no score; logprobs: mode -> per chunk a list of natural-log probabilities of its scored tokens ([] = not
    stored, NaN = the model gave none).
    """

    chunks: np.ndarray
    sequences: np.ndarray
    indexes: np.ndarray
    documents: np.ndarray
    document_chunks: np.ndarray
    tokens: np.ndarray
    num_bytes: np.ndarray
    overlaps: np.ndarray
    bits: dict[str, np.ndarray]
    logprobs: dict[str, list[list[float]]]

    @property
    def served(self) -> np.ndarray:
        """bool [C]: chunks that retrieval serves: a chunk of the same document precedes them in the sequence."""
        return (self.indexes > 0) & (self.document_chunks > 0)

    def row_of_chunk(self) -> dict[int, int]:
        """chunk id -> row."""
        return {int(chunk): row for row, chunk in enumerate(self.chunks)}


def read_scored_chunks(evaluation: Evaluation) -> ScoredChunks:
    """Turn responses.jsonl into arrays; raises ArtifactCorruptError naming line and field of what does not fit."""
    source = evaluation.path / "responses.jsonl"
    modes = evaluation.modes
    columns: dict[str, list[int]] = {
        name: [] for name in ("chunk", "sequence", "index", "document_chunk", "tokens", "bytes")
    }
    documents: dict[str, int] = {}
    document_rows, overlaps = [], []
    bits: dict[str, list[float]] = {mode: [] for mode in modes}
    logprobs: dict[str, list[list[float]]] = {mode: [] for mode in modes}
    for number, row in enumerate(evaluation.responses, start=1):
        try:
            for name, column in columns.items():
                column.append(_integer(row[name], name))
            document_rows.append(documents.setdefault(str(row["document"]), len(documents)))
            overlap = row.get("overlap")
            overlaps.append(math.nan if overlap is None else float(overlap))
            stored = row.get("logprobs") or {}
            for mode in modes:
                bits[mode].append(_score(row["bits"][mode], f"bits of mode {mode}"))
                logprobs[mode].append([math.nan if v is None else float(v) for v in stored.get(mode) or []])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            detail = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise ArtifactCorruptError(f"{source}:{number}: {detail}; run `retro eval` again") from None
    arrays = {name: np.array(column, np.int64) for name, column in columns.items()}
    if len(np.unique(arrays["chunk"])) != len(arrays["chunk"]):
        raise ArtifactCorruptError(f"{source}: expected every chunk once, found repeats; run `retro eval` again")
    return ScoredChunks(
        chunks=arrays["chunk"],
        sequences=arrays["sequence"],
        indexes=arrays["index"],
        documents=np.array(document_rows, np.int64),
        document_chunks=arrays["document_chunk"],
        tokens=arrays["tokens"],
        num_bytes=arrays["bytes"],
        overlaps=np.array(overlaps, np.float64),
        bits={mode: np.array(values, np.float64) for mode, values in bits.items()},
        logprobs=logprobs,
    )


def _integer(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected an integer for {name!r}, found {value!r}")
    return value


def _score(value: Any, name: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected a finite number for {name}, found {value!r}")
    return float(value)


def align(runs: Sequence[Run], name: str, scored: Mapping[str, ScoredChunks]) -> dict[str, ScoredChunks]:
    """Bring every run's scored chunks into the order of the first run.

    Raises ArtifactMismatchError unless all runs scored exactly the same chunks of the same documents, with the same
    numbers of tokens and bytes: bits per byte over different text cannot be compared.
    """
    first = next(run for run in runs if run.name in scored)
    base = scored[first.name]
    result = {first.name: base}
    for run in runs:
        if run.name not in scored or run is first:
            continue
        other = scored[run.name]
        where = f"{run.path}/eval/{name}: not the same test text as {first.path}/eval/{name}"
        rows = other.row_of_chunk()
        missing = [int(chunk) for chunk in base.chunks if int(chunk) not in rows]
        if missing or len(other.chunks) != len(base.chunks):
            shared = len(base.chunks) - len(missing)
            raise ArtifactMismatchError(
                f"{where} (expected its {len(base.chunks)} scored chunks, found {len(other.chunks)} of which {shared} "
                "are shared); evaluate both runs with the same release, split and max_sequences"
            )
        order = np.array([rows[int(chunk)] for chunk in base.chunks], np.int64)
        other = select(other, order)
        for field in ("tokens", "num_bytes", "document_chunks", "indexes", "sequences"):
            here, there = getattr(base, field), getattr(other, field)
            if not np.array_equal(here, there):
                at = int(np.argmax(here != there))
                raise ArtifactMismatchError(
                    f"{where} (chunk {base.chunks[at]}: expected {field} {here[at]}, found {there[at]}); "
                    "evaluate both runs with the same release, tokenizer and sequence length"
                )
        pairs = set(zip(base.documents.tolist(), other.documents.tolist(), strict=True))
        if len(pairs) != len({a for a, _ in pairs}) or len(pairs) != len({b for _, b in pairs}):
            raise ArtifactMismatchError(
                f"{where} (the chunks belong to other documents); use the same release for both"
            )
        result[run.name] = other
    return result


def drop_unscored(scored: Mapping[str, ScoredChunks]) -> tuple[dict[str, ScoredChunks], int]:
    """Aligned runs without the chunks that some run or mode gave no score for, and how many those are.

    A missing score is missing, not 0; leaving the chunk out everywhere keeps the comparison paired.
    """
    first = next(iter(scored.values()))
    keep = np.ones(len(first.chunks), bool)
    for item in scored.values():
        for bits in item.bits.values():
            keep &= np.isfinite(bits)
    if keep.all():
        return dict(scored), 0
    rows = np.flatnonzero(keep)
    result = {}
    for name, item in scored.items():
        kept = select(item, rows)
        documents = np.unique(kept.documents, return_inverse=True)[1].astype(np.int64)
        result[name] = dataclasses.replace(kept, documents=documents)
    return result, int((~keep).sum())


def select(scored: ScoredChunks, order: np.ndarray) -> ScoredChunks:
    """The chunks at the rows `order` (int64), in that order."""
    changes: dict[str, Any] = {
        field.name: getattr(scored, field.name)[order]
        for field in dataclasses.fields(scored)
        if field.name not in ("bits", "logprobs")
    }
    changes["bits"] = {mode: values[order] for mode, values in scored.bits.items()}
    changes["logprobs"] = {mode: [values[i] for i in order] for mode, values in scored.logprobs.items()}
    return ScoredChunks(**changes)
