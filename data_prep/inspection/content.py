"""What artifacts mean, beyond their checksums: chunks that lie in their documents, neighbors of other documents."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retro.artifacts.manifest import Manifest, input_path
from retro.config.errors import RetroError
from retro.data.chunk_store import CHUNKS_KIND, open_chunk_store
from retro.data.document import DOCUMENTS_KIND, document_files
from retro.data.neighbor_table import NEIGHBORS_KIND, open_neighbor_table
from retro.data.question_dataset import QUESTION_SEQUENCES_KIND, open_question_sequences
from retro.data.questions import QUESTION_SPLITS, QUESTIONS_KIND, open_questions
from retro.data.token_store import TOKENS_KIND, open_token_store
from retro.data.tokenizer import TOKENIZER_KIND, open_tokenizer
from retro.retrieval.vectors import EMBEDDINGS_KIND, open_vectors

_BLOCK = 65536


def check_content(folder: Path, manifest: Manifest) -> list[str]:
    """Problems of the whole artifact as what it is; its files and inputs must be there. An index is a function of
    what it indexes and has no content of its own to check: it is made again instead."""
    try:
        if manifest.kind == DOCUMENTS_KIND:
            document_files(folder)
        elif manifest.kind == TOKENIZER_KIND:
            open_tokenizer(folder)
        elif manifest.kind == TOKENS_KIND:
            open_token_store(folder)
        elif manifest.kind == CHUNKS_KIND:
            open_chunk_store(folder).verify()
        elif manifest.kind == EMBEDDINGS_KIND:
            return _check_vectors(folder)
        elif manifest.kind == NEIGHBORS_KIND:
            queries, database = (open_chunk_store(input_path(folder, manifest, n)) for n in ("queries", "database"))
            open_neighbor_table(folder, queries, database).verify()
        elif manifest.kind == QUESTIONS_KIND:
            for split in QUESTION_SPLITS:
                open_questions(folder, split)
        elif manifest.kind == QUESTION_SEQUENCES_KIND:
            for split in QUESTION_SPLITS:
                open_question_sequences(folder, split)
    except RetroError as error:
        return [str(error)]
    except (OSError, ValueError, LookupError, TypeError) as error:  # readers of what another artifact's damage broke
        return [
            f"{folder}: cannot be read as {manifest.kind} ({type(error).__name__}: {error}); check its inputs first"
        ]
    return []


def _check_vectors(folder: Path) -> list[str]:
    for first, block in open_vectors(folder).blocks(_BLOCK):
        bad = ~np.isfinite(np.asarray(block)).all(axis=1)
        if bad.any():
            return [
                f"{folder}/vectors-*.npy: expected finite numbers, found others in row {first + int(bad.argmax())}"
                f" and {int(bad.sum()) - 1} more of its block; move the folder away and embed again"
            ]
    return []
