"""The queries of one release with the database of another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.build_index import build_index_stage
from data_prep.find_neighbors import FindNeighborsStage
from data_prep.question_sequences import QuestionSequencesStage
from data_prep.stage import Stage
from data_prep.update.output import claim_output
from data_prep.update.stored_config import RERANK_INDEX, find_reranker, neighbors_config, sequences_config
from retro.artifacts.manifest import input_path, open_manifest
from retro.artifacts.release import Release, Split, open_release, write_release
from retro.data.question_dataset import QUESTION_SEQUENCES_KIND
from retro.data.release_match import check_database

#: Carries a stage out and returns its folder.
Run = Callable[[Stage], Path]


def swap_database(
    queries: str | Path, database: str | Path, root: str | Path, run: Run, changes: dict[str, Any] | None = None
) -> Path:
    """Write `root`/release.json: splits, questions and tokenizer of the release `queries`, database and searcher of the
    release `database`, and fresh neighbors of the one in the other; returns its path.

    The neighbors are found with the settings of the release `queries`, changed by `changes` (fields of NeighborsConfig
    that apply). Raises ArtifactMismatchError where the two do not have one tokenizer and one chunk length, ConfigError
    where the database has no searcher.
    """
    ours, theirs = open_release(queries), open_release(database)
    check_database(ours, theirs)
    assert theirs.searcher is not None
    changes = changes or {}
    request = {"operation": "swap", "queries": ours.fingerprint, "database": theirs.fingerprint, "changes": changes}
    path = claim_output(Path(root), request)
    reranker: Path | None = None

    def reranker_if(wanted: str) -> Path | None:
        nonlocal reranker
        if wanted != "bm25":
            return None
        reranker = reranker or find_reranker(_retrieving(theirs))
        reranker = reranker or run(build_index_stage(RERANK_INDEX, theirs.database_chunks))
        return reranker

    splits = {}
    for name, split in ours.splits.items():
        config = neighbors_config(split.neighbors, changes)
        stage = FindNeighborsStage(
            config,
            queries=split.chunks,
            database=theirs.database_chunks,
            searcher=theirs.searcher,
            reranker=reranker_if(config.rerank),
        )
        splits[name] = Split(split.tokens, split.chunks, run(stage))
    # The same tokenizer may be two artifacts; models know the one of the queries.
    own = ours.tokenizer if _fingerprint(ours.tokenizer) != _fingerprint(theirs.tokenizer) else None
    questions = {}
    for name, folder in ours.questions.items():
        if open_manifest(folder).kind != QUESTION_SEQUENCES_KIND:
            questions[name] = folder
            continue
        layout = sequences_config(folder)
        questions[name] = run(
            QuestionSequencesStage(
                layout,
                questions=input_path(folder, open_manifest(folder), "questions"),
                database=theirs.database_chunks,
                searcher=theirs.searcher,
                reranker=reranker_if(layout.rerank),
                tokenizer=own,
            )
        )
    write_release(
        path,
        tokenizer=ours.tokenizer,
        documents=ours.documents,
        database_tokens=theirs.database_tokens,
        database_chunks=theirs.database_chunks,
        searcher=theirs.searcher,
        splits=splits,
        questions=questions,
    )
    return path


def _fingerprint(folder: Path) -> str:
    return open_manifest(folder).fingerprint


def _retrieving(release: Release) -> list[Path]:
    """Artifacts that may have been reranked."""
    tables = [split.neighbors for _, split in sorted(release.splits.items()) if split.neighbors is not None]
    return [*tables, *(folder for _, folder in sorted(release.questions.items()))]
