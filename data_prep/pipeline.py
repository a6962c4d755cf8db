"""The stages of one configuration, in order, each made from the finished folders of those before it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.build_index import build_index_stage
from data_prep.chunk import ChunkStage
from data_prep.deduplicate import deduplicate_steps
from data_prep.docs_questions import DocsQuestionsStage
from data_prep.embed import EmbedStage, FitEmbedderStage
from data_prep.execution.crew import Crew
from data_prep.execution.devices import usable_cores
from data_prep.execution.ray_session import disconnect
from data_prep.find_neighbors import FindNeighborsStage
from data_prep.ingest import IngestStage
from data_prep.question_sequences import QuestionSequencesStage
from data_prep.runner import Executor, run_stage
from data_prep.stage import Stage
from data_prep.tokenize_documents import TokenizeStage
from data_prep.train_index import TrainIndexStage
from data_prep.train_tokenizer import TokenizerStage
from data_prep.update.add import add_steps, write_added_release
from retro.artifacts.atomic import remove_dead_temporaries
from retro.artifacts.manifest import open_manifest
from retro.artifacts.release import Split, write_release
from retro.config.errors import ConfigError, RetroError
from retro.config.prep_index import Bm25Config, IndexConfig
from retro.config.prep_tokens import TokensConfig
from retro.config.preparation import PrepConfig
from retro.retrieval.encoder_files import find_encoder


@dataclass(frozen=True)
class Step:
    """One stage of the pipeline under a name of its own (`tokenize` is carried out once per set of splits)."""

    name: str
    build: Callable[[dict[str, Path]], Stage]


def steps(config: PrepConfig) -> list[Step]:
    """The steps in order. `build` is called with the folders of the steps before it, by name."""
    if config.base is not None:
        return [Step(name, build) for name, build in add_steps(config)]
    root = Path(config.root)
    found: list[Step] = []

    def add(name: str, build: Callable[[dict[str, Path]], Stage]) -> None:
        found.append(Step(name, build))

    add("ingest", lambda done: IngestStage(config.ingest, cache=root / ".corpus-hashes.jsonl"))
    documents = "ingest"
    if config.deduplicate is not None:
        for name, build in deduplicate_steps(config.deduplicate):
            add(name, build)
        documents = "deduplicate"
    add("train_tokenizer", lambda done: TokenizerStage(config.tokenizer, done[documents]))
    for splits in token_sets(config):
        label = "+".join(splits)
        tokens = TokensConfig(splits, seed=config.token_order_seed, shard_bytes=config.token_shard_bytes)
        add(
            f"tokenize {label}",
            lambda done, tokens=tokens: TokenizeStage(tokens, done[documents], done["train_tokenizer"]),  # type: ignore[misc]
        )
        add(f"chunk {label}", lambda done, label=label: ChunkStage(config.chunk, done[f"tokenize {label}"]))  # type: ignore[misc]
    database = "chunk " + "+".join(sorted(config.database_splits))
    if config.embed is not None:
        embed = config.embed
        add("fit_embedder", lambda done: FitEmbedderStage(embed, done[database]))
        add("embed", lambda done: EmbedStage(embed, done[database], done["fit_embedder"]))
    if config.index.kind == "vectors" and config.index.vectors.factory != "exact":
        add("train_index", lambda done: TrainIndexStage(config.index, done["embed"]))
    add(
        "build_index",
        lambda done: build_index_stage(config.index, done[database], done.get("embed"), done.get("train_index")),
    )
    if "bm25" in (config.neighbors.rerank, config.question_sequences.rerank if config.questions else None):
        # A second index, for the order of the candidates only.
        bm25 = IndexConfig(kind="bm25", bm25=Bm25Config())
        add("build_index for rerank", lambda done: build_index_stage(bm25, done[database]))
    for split in config.query_splits:
        add(
            f"find_neighbors {split}",
            lambda done, split=split: FindNeighborsStage(  # type: ignore[misc]
                config.neighbors,
                queries=done[f"chunk {split}"],
                database=done[database],
                searcher=done["build_index"],
                reranker=done["build_index for rerank"] if config.neighbors.rerank == "bm25" else None,
            ),
        )
    if config.questions is not None:
        questions = config.questions
        add("questions", lambda done: DocsQuestionsStage(questions, done[documents]))
        add(
            "question_sequences",
            lambda done: QuestionSequencesStage(
                config.question_sequences,
                questions=done["questions"],
                database=done[database],
                searcher=done["build_index"],
                reranker=done["build_index for rerank"] if config.question_sequences.rerank == "bm25" else None,
            ),
        )
    return found


def token_sets(config: PrepConfig) -> list[tuple[str, ...]]:
    """Sets of splits that get a token store: each query split by itself, and the database's splits together."""
    sets: list[tuple[str, ...]] = [(split,) for split in config.query_splits]
    database = tuple(sorted(config.database_splits))
    return sets if database in sets else [*sets, database]


def workers(config: PrepConfig) -> int:
    """Shards to be run at a time; 0 = what a Ray cluster has room for."""
    return config.workers or (0 if config.executor.type == "ray" else usable_cores())


def iter_folders(config: PrepConfig) -> Iterator[tuple[Step, Stage, Path]]:
    """(step, stage, output folder) for every step whose inputs are finished, in order; nothing is run."""
    done: dict[str, Path] = {}
    for step in steps(config):
        stage = step.build(done)
        folder = Path(config.root) / stage.folder_name()
        yield step, stage, folder
        if not (folder / "manifest.json").is_file():
            return
        done[step.name] = folder


def run(config: PrepConfig, progress: bool = True, rank: int = 0, world: int = 1) -> Path:
    """Carry out every step that is not finished and write the release; returns the path of release.json.

    Any number of processes may run one configuration at the same time in the same root: they share the shards. With
    `rank` of `world` each begins with others. Ended early in any way and started again it ends in the same bytes.
    """
    root = Path(config.root)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"root: {root} cannot be made ({error.strerror}); choose another folder") from None
    if config.embed is not None and config.embed.kind == "transformer":
        find_encoder(config.embed.transformer)  # a wrong path is said now, not after hours of other stages
    remove_dead_temporaries(root)  # a run killed while it wrote release.json or the corpus hashes
    done: dict[str, Path] = {}
    try:
        with Crew() as crew:
            executor = Executor(workers(config), config.executor, rank, world, crew)
            for step in steps(config):
                stage = step.build(done)
                if isinstance(stage, IngestStage) and (change := stage.corpus_change(root)) is not None:
                    sys.stderr.write(change + "\n")
                done[step.name] = run_stage(stage, root, executor, progress)
                if isinstance(stage, IngestStage) and (unused := _unused_documents(config, done[step.name])):
                    sys.stderr.write(unused + "\n")
    finally:
        disconnect()
    try:
        return release(config, done)
    except OSError as error:
        raise RetroError(
            f"{root / 'release.json'}: cannot be written ({error.strerror or error}); free the cause and run the "
            "command again; all stages are finished"
        ) from None


def _unused_documents(config: PrepConfig, ingested: Path) -> str | None:
    """A line about documents that were meant for the database alone and are not in it."""
    count = open_manifest(ingested).stats["splits"].get("database_only", 0)
    if not count or "database_only" in config.database_splits:
        return None
    return (
        f"note: {count:,} documents of the split database_only will not be retrieved, the database is made of "
        f"{', '.join(config.database_splits)}; to have them in it set database_splits="
        f"[{','.join([*config.database_splits, 'database_only'])}]"
    )


def release(config: PrepConfig, done: dict[str, Path]) -> Path:
    """Write release.json for the finished folders."""
    if config.base is not None:
        return write_added_release(config, done)
    database = "+".join(sorted(config.database_splits))
    path = Path(config.root) / "release.json"
    write_release(
        path,
        tokenizer=done["train_tokenizer"],
        documents=done["deduplicate"] if config.deduplicate is not None else done["ingest"],
        database_tokens=done[f"tokenize {database}"],
        database_chunks=done[f"chunk {database}"],
        searcher=done["build_index"],
        splits={
            split: Split(
                tokens=done[f"tokenize {split}"],
                chunks=done[f"chunk {split}"],
                neighbors=done[f"find_neighbors {split}"],
            )
            for split in config.query_splits
        },
        questions={"docs": done["question_sequences"]} if config.questions is not None else {},
    )
    return path
