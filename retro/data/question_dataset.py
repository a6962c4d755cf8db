"""Questions laid out as sequences of chunks: what a model is fine-tuned on and asked, with the loss on the answer only.

Layout (Wang et al. 2023, section 4.2): the question is left-padded to fill `question_chunks` chunks, so its last token
ends a chunk; the answer and the end-of-text token are right-padded in one chunk more. The neighbors were found with the
last question chunk and serve the answer, from its first token on.

Artifact kind "question_sequences" (input questions, database, searcher): per split, in the order of the questions,
tokens-<split>-00000.npy int32 [n, N], answer_lengths-<split>-00000.npy int32 [n] (end-of-text included),
ids-<split>-00000.npy int64 [n, k], distances-<split>-00000.npy float32 [n, k], questions-<split>-00000.jsonl.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retro.artifacts.manifest import input_path, open_manifest
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ConfigError
from retro.data.questions import QUESTION_SPLITS, Question, read_questions
from retro.data.sharded_array import read_array

if TYPE_CHECKING:
    from retro.data.batch import RetroBatch
    from retro.data.chunk_store import ChunkStore

QUESTION_SEQUENCES_KIND = "question_sequences"
RETRIEVAL = ("on", "off", "shuffled")


@dataclasses.dataclass(frozen=True)
class QuestionSequences:
    """One split of the artifact: Q questions.

    tokens int32 [Q, N]; answer_lengths int32 [Q], tokens of the answer with its end-of-text token; neighbor_ids
    int64 [Q, k], -1 = none; distances float32 [Q, k]; chunk_length M; question_chunks; tokenizer: its fingerprint;
    database: fingerprint of the chunks that neighbor_ids count.
    """

    questions: list[Question]
    tokens: np.ndarray
    answer_lengths: np.ndarray
    neighbor_ids: np.ndarray
    distances: np.ndarray
    chunk_length: int
    question_chunks: int
    tokenizer: str
    database: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def prompt_length(self) -> int:
        """Tokens before the answer, padding included."""
        return self.question_chunks * self.chunk_length

    @property
    def sequence_length(self) -> int:
        """N."""
        return self.prompt_length + self.chunk_length


def open_question_sequences(folder: str | Path, split: str) -> QuestionSequences:
    """Open one split. Raises ArtifactError subclasses, and ConfigError for a split that questions do not have."""
    if split not in QUESTION_SPLITS:
        raise ConfigError(f"split: questions have the splits {' and '.join(QUESTION_SPLITS)}, found {split!r}")
    folder = Path(folder)
    manifest = open_manifest(folder, QUESTION_SEQUENCES_KIND)
    names = [shard["name"] for shard in manifest.shards if shard["name"].startswith(f"{split}-")]
    parts: dict[str, np.ndarray] = {}
    for name in ("tokens", "answer_lengths", "ids", "distances"):
        arrays = [read_array(folder / f"{name}-{shard}.npy") for shard in names]
        parts[name] = np.concatenate(arrays)
    questions = [question for shard in names for question in read_questions(folder / f"questions-{shard}.jsonl")]
    layout = manifest.stats["layout"]
    result = QuestionSequences(
        questions=questions,
        tokens=parts["tokens"],
        answer_lengths=parts["answer_lengths"],
        neighbor_ids=parts["ids"],
        distances=parts["distances"],
        chunk_length=int(layout["chunk_length"]),
        question_chunks=int(manifest.config["question_chunks"]),
        tokenizer=str(layout["tokenizer"]),
        database=manifest.inputs["database"]["fingerprint"],
        fingerprint=manifest.fingerprint,
    )
    if result.tokens.shape != (len(questions), result.sequence_length) or len(result.neighbor_ids) != len(questions):
        raise ArtifactCorruptError(
            f"{folder}: expected {len(questions)} sequences of {result.sequence_length} tokens in split {split}, found "
            f"{list(result.tokens.shape)}; make the artifact again"
        )
    return result


class QuestionDataset:
    """Questions as training sequences, with the interface of RetroDataset.

    retrieval: "on", "off" (no neighbors in the batch), or "shuffled" (each question gets those of another one, by a
    seeded permutation without fixed points). num_neighbors K: the first K of the stored ones.
    """

    def __init__(
        self,
        sequences: QuestionSequences,
        database: ChunkStore | None,
        num_neighbors: int,
        pad_id: int,
        retrieval: str = "on",
        seed: int = 0,
    ) -> None:
        """Raises ConfigError for options that do not fit and ArtifactMismatchError for another chunk length."""
        if retrieval not in RETRIEVAL:
            raise ConfigError(f"retrieval: expected one of {', '.join(RETRIEVAL)}, found {retrieval!r}")
        if retrieval != "off":
            stored = sequences.neighbor_ids.shape[1]
            if database is None:
                raise ConfigError(f"retrieval {retrieval!r} of questions needs the database; 'off' needs none")
            if not 1 <= num_neighbors <= stored:
                raise ConfigError(f"num_neighbors: expected 1 to the {stored} stored, found {num_neighbors}")
            if database.chunk_length != sequences.chunk_length:
                raise ArtifactMismatchError(
                    f"questions: expected chunks of {database.chunk_length} tokens, as the database has, found "
                    f"{sequences.chunk_length}"
                )
        self.sequences, self.database, self.pad_id = sequences, database, pad_id
        self.num_neighbors, self.retrieval, self.seed = num_neighbors, retrieval, seed
        self.sequence_length, self.chunk_length = sequences.sequence_length, sequences.chunk_length
        ids = sequences.neighbor_ids[:, :num_neighbors]
        if retrieval == "shuffled":
            ids = ids[shuffled_rows(len(ids), seed)]
        self.neighbor_ids = ids

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> RetroBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> RetroBatch:
        """A batch of B questions: tokens_BN, targets_BN, loss_mask_BN (the answer and its end), neighbors_BLKR of
        which only the row of the last question chunk is used."""
        from retro.data.batch import RetroBatch

        rows = np.asarray(indices, dtype=np.int64)
        sequences = self.sequences
        length, prompt, chunk = sequences.sequence_length, sequences.prompt_length, sequences.chunk_length
        tokens = sequences.tokens[rows].astype(np.int32)
        targets = np.full_like(tokens, self.pad_id)
        targets[:, :-1] = tokens[:, 1:]
        positions = np.arange(length)
        answer_end = prompt - 1 + sequences.answer_lengths[rows]
        mask = (positions >= prompt - 1) & (positions < answer_end[:, None])
        chunks = length // chunk
        neighbors = neighbor_mask = None
        if self.retrieval != "off":
            assert self.database is not None
            found, real = self.database.gather_neighbors(self.neighbor_ids[rows], self.pad_id)
            shape = (len(rows), chunks, *found.shape[1:])
            neighbors = np.full(shape, self.pad_id, dtype=np.int32)
            neighbor_mask = np.zeros(shape, dtype=bool)
            neighbors[:, sequences.question_chunks - 1] = found
            neighbor_mask[:, sequences.question_chunks - 1] = real
        return RetroBatch(
            tokens_BN=tokens,
            targets_BN=targets,
            loss_mask_BN=mask,
            neighbors_BLKR=neighbors,
            neighbor_mask_BLKR=neighbor_mask,
            # Questions are no chunks of any store.
            chunk_ids_BL=np.full((len(rows), chunks), -1, dtype=np.int64),
            sample_ids_B=rows,
        )


def shuffled_rows(rows: int, seed: int) -> np.ndarray:
    """int64 [rows]: for each row another row, each used once (a seeded cycle); a single row keeps itself."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(rows)
    partner = np.empty(rows, dtype=np.int64)
    partner[order] = np.roll(order, 1)
    return partner


def question_database(folder: str | Path) -> Path:
    """Folder of the chunks that the neighbors of a question_sequences artifact are in, checked by fingerprint."""
    folder = Path(folder)
    return input_path(folder, open_manifest(folder, QUESTION_SEQUENCES_KIND), "database")
