"""Questions asked with another database than the one that their stored neighbors are in."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retro.artifacts.manifest import open_manifest
from retro.config.errors import ConfigError
from retro.data.chunk_store import open_chunk_store
from retro.data.question_dataset import QuestionSequences
from retro.data.questions import format_prompt
from retro.data.release_match import check_database
from retro.inference.evidence import find_reranker
from retro.retrieval.retriever import Retriever
from retro.retrieval.searcher import open_searcher

if TYPE_CHECKING:
    from retro.artifacts.release import Release
    from retro.data.tokenizer import Tokenizer
    from retro.retrieval.bm25 import BM25Searcher


def ask_database(
    folder: Path,
    sequences: QuestionSequences,
    release: Release,
    database: Release,
    tokenizer: Tokenizer,
    device: str = "auto",
) -> QuestionSequences:
    """The questions with neighbors out of `database`, searched now as the stored ones were (data_prep's stage).

    folder: the question_sequences artifact that `sequences` are a split of; release: what it belongs to. The rest of
    the sequences stays as it is; `fingerprint` names both. Raises ArtifactMismatchError for a database of another
    tokenizer or chunk length and ConfigError for one that cannot be searched in the same way.
    """
    check_database(release, database)
    if database.searcher is None:
        raise ConfigError(f"{database.path}: was prepared without a searcher; prepare it with one")
    settings = open_manifest(folder).config
    reranker: BM25Searcher | None = None
    if settings["rerank"] == "bm25":
        from retro.retrieval.bm25 import BM25Searcher

        reranker = BM25Searcher(find_reranker(database))
    store = open_chunk_store(database.database_chunks)
    searcher = open_searcher(database.searcher, device)
    retriever = Retriever(searcher, store, candidates=int(settings["candidates"]), reranker=reranker)
    prompts = [[tokenizer.bos_id, *tokenizer.encode(format_prompt(q.question))] for q in sequences.questions]
    rows = [np.array(prompt[-store.chunk_length :], dtype=np.int64) for prompt in prompts]
    ids, distances = retriever.retrieve(rows, int(settings["keep"]))
    return dataclasses.replace(
        sequences,
        neighbor_ids=ids,
        distances=distances,
        database=store.fingerprint,
        fingerprint=f"{sequences.fingerprint}+{database.fingerprint}",
    )
