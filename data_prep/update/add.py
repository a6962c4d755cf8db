"""The steps of `retro prep add`: new documents behind those of a finished release, of which nothing is made again.

What is added goes through the ordinary stages on its own; the results are put behind the base's, whose shards are
hard-linked. Documents and chunks of the base keep their numbers; the added ones follow, in their own order of use. The
index takes the base's parts over and encodes only what is new. Neighbors are searched for every query chunk, because
any of them may have a nearer one among the new chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.build_index import build_index_stage, extend_index_stage
from data_prep.chunk import ChunkStage
from data_prep.deduplicate import deduplicate_steps
from data_prep.embed import EmbedStage
from data_prep.find_neighbors import FindNeighborsStage
from data_prep.ingest import IngestStage
from data_prep.question_sequences import QuestionSequencesStage
from data_prep.stage import Stage
from data_prep.tokenize_documents import TokenizeStage
from data_prep.update.extend import (
    ExtendChunksStage,
    ExtendDocumentsStage,
    ExtendEmbeddingsStage,
    ExtendTokensStage,
)
from data_prep.update.stored_config import RERANK_INDEX, find_reranker, sequences_config
from retro.artifacts.manifest import input_path, open_manifest
from retro.artifacts.release import Release, Split, open_release, write_release
from retro.config.errors import ConfigError
from retro.config.prep_tokens import TokensConfig
from retro.config.preparation import PrepConfig
from retro.data.question_dataset import QUESTION_SEQUENCES_KIND

Done = dict[str, Path]
Build = Callable[[Done], Stage]


class TokenizeAddedStage(TokenizeStage):
    """Tokenize; new documents need not be of every split."""

    name = "tokenize_added"
    may_be_empty = True


def add_steps(config: PrepConfig) -> list[tuple[str, Build]]:
    """(step, build) in order; `build` is called with the folders of the steps before it, by name.

    config: as `inherit` completes it from the base. Raises ConfigError for a base that cannot be searched, or that lies
    where the new release is to be.
    """
    base = _open_base(config)
    steps: list[tuple[str, Build]] = []

    def add(name: str, build: Build) -> None:
        steps.append((name, build))

    add("ingest", lambda done: IngestStage(config.ingest, cache=Path(config.root) / ".corpus-hashes.jsonl"))
    documents = "ingest"
    if config.deduplicate is not None:
        steps += deduplicate_steps(config.deduplicate, base=base.documents)
        documents = "deduplicate"
    add("extend documents", lambda done: ExtendDocumentsStage(base.documents, done[documents]))
    for label, (tokens, chunks) in _token_sets(config, base).items():
        steps += _token_steps(config, base, documents, label, tokens, chunks)
    database = f"extend chunks {_label(config.database_splits)}"
    steps += _index_steps(config, base, database)
    retrieving = [split.neighbors for split in base.splits.values() if split.neighbors is not None]
    reranker = find_reranker([*retrieving, *base.questions.values()])
    layouts = {
        name: sequences_config(folder)
        for name, folder in sorted(base.questions.items())
        if open_manifest(folder).kind == QUESTION_SEQUENCES_KIND
    }
    if "bm25" in (config.neighbors.rerank, *(layout.rerank for layout in layouts.values())):
        add("build_index for rerank", lambda done: build_index_stage(RERANK_INDEX, done[database], base=reranker))

    def searched(done: Done, rerank: str) -> dict[str, Any]:
        return {
            "database": done[database],
            "searcher": done["build_index"],
            "reranker": done["build_index for rerank"] if rerank == "bm25" else None,
        }

    for split in config.query_splits:
        add(
            f"find_neighbors {split}",
            lambda done, split=split: FindNeighborsStage(  # type: ignore[misc]
                config.neighbors, queries=done[f"extend chunks {split}"], **searched(done, config.neighbors.rerank)
            ),
        )
    for name, layout in layouts.items():
        questions = input_path(base.questions[name], open_manifest(base.questions[name]), "questions")
        add(
            f"question_sequences {name}",
            lambda done, layout=layout, questions=questions: QuestionSequencesStage(  # type: ignore[misc]
                layout, questions=questions, **searched(done, layout.rerank)
            ),
        )
    return steps


def write_added_release(config: PrepConfig, done: Done) -> Path:
    """Write release.json for the finished folders; returns its path. Questions without neighbors stay the base's."""
    base = _open_base(config)
    database = _label(config.database_splits)
    path = Path(config.root) / "release.json"
    write_release(
        path,
        tokenizer=base.tokenizer,
        documents=done["extend documents"],
        database_tokens=done[f"extend tokens {database}"],
        database_chunks=done[f"extend chunks {database}"],
        searcher=done["build_index"],
        splits={
            split: Split(
                tokens=done[f"extend tokens {split}"],
                chunks=done[f"extend chunks {split}"],
                neighbors=done[f"find_neighbors {split}"],
            )
            for split in config.query_splits
        },
        questions={
            name: done.get(f"question_sequences {name}", folder) for name, folder in sorted(base.questions.items())
        },
    )
    return path


def _open_base(config: PrepConfig) -> Release:
    if config.base is None:
        raise ConfigError("base is required: the release.json that documents are added to")
    base = open_release(config.base)
    if base.path.parent == Path(config.root).resolve():
        raise ConfigError(f"root: {config.root} is the folder of the base; a new release needs a folder of its own")
    if base.searcher is None:
        raise ConfigError(f"{base.path}: was prepared without a searcher; documents cannot be added to its index")
    return base


def _label(splits: tuple[str, ...]) -> str:
    return "+".join(sorted(splits))


def _token_sets(config: PrepConfig, base: Release) -> dict[str, tuple[Path, Path]]:
    """(tokens, chunks) of the base by label: each query split by itself, and the database's splits together."""
    sets = {split: (base.split(split).tokens, base.split(split).chunks) for split in config.query_splits}
    sets.setdefault(_label(config.database_splits), (base.database_tokens, base.database_chunks))
    return sets


def _token_steps(
    config: PrepConfig, base: Release, documents: str, label: str, tokens: Path, chunks: Path
) -> list[tuple[str, Build]]:
    layout = TokensConfig(tuple(label.split("+")), seed=config.token_order_seed, shard_bytes=config.token_shard_bytes)
    return [
        (f"tokenize added {label}", lambda done: TokenizeAddedStage(layout, done[documents], base.tokenizer)),
        (f"chunk added {label}", lambda done: ChunkStage(config.chunk, done[f"tokenize added {label}"])),
        (f"extend tokens {label}", lambda done: ExtendTokensStage(tokens, done[f"tokenize added {label}"])),
        (
            f"extend chunks {label}",
            lambda done: ExtendChunksStage(chunks, done[f"chunk added {label}"], done[f"extend tokens {label}"]),
        ),
    ]


def _index_steps(config: PrepConfig, base: Release, database: str) -> list[tuple[str, Build]]:
    searcher = base.searcher
    assert searcher is not None
    if config.embed is None:
        return [("build_index", lambda done: extend_index_stage(searcher, done[database]))]
    embed = config.embed
    vectors = input_path(searcher, open_manifest(searcher), "embeddings")
    embedder = input_path(vectors, open_manifest(vectors), "embedder")
    added = database.replace("extend chunks", "chunk added")
    return [
        ("embed added", lambda done: EmbedStage(embed, done[added], embedder)),
        ("extend embeddings", lambda done: ExtendEmbeddingsStage(vectors, done["embed added"], done[database])),
        ("build_index", lambda done: extend_index_stage(searcher, done["extend embeddings"])),
    ]
