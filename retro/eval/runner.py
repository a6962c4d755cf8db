"""Carries out an evaluation: opens what it needs, asks the model block by block, then scores what is stored."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retro.artifacts.atomic import write_json_atomic
from retro.artifacts.manifest import open_manifest
from retro.artifacts.release import Release, open_release
from retro.config.errors import ConfigError
from retro.config.evaluation import EvalConfig, Mode
from retro.data.chunk_store import open_chunk_store
from retro.data.dataset import RetroDataset
from retro.data.neighbor_table import open_neighbor_table
from retro.data.question_dataset import (
    QUESTION_SEQUENCES_KIND,
    QuestionDataset,
    open_question_sequences,
    question_database,
)
from retro.data.tokenizer import Tokenizer, open_tokenizer
from retro.eval.qa_opening import open_qa_task
from retro.eval.responses import SAMPLES_NAME, ResponseLog, open_log, read_responses
from retro.eval.results import write_results
from retro.eval.tasks.base import Task
from retro.eval.tasks.docs_qa import DocsQaTask
from retro.eval.tasks.perplexity import PerplexityTask
from retro.eval.tasks.qa import QaTask
from retro.inference.checkpoint import Checkpoint, open_checkpoint
from retro.inference.language_model import LanguageModel

if TYPE_CHECKING:
    from retro.model import RetroModel


def evaluate(config: EvalConfig, progress: bool = True) -> Path:
    """Evaluate and return the folder with responses.jsonl, results.json and (perplexity) samples.json or (qa)
    scores.jsonl.

    Killed at any moment and started again it continues after the last committed block and ends in the same responses;
    an evaluation that is finished is only scored again. Raises RetroError subclasses.
    """
    checkpoint = open_checkpoint(config.checkpoint)
    release = open_release(checkpoint.release_path(config.release))
    tokenizer = open_tokenizer(release.tokenizer)
    checkpoint.check_tokenizer(tokenizer.fingerprint, str(release.path))
    model = _open_model(config, checkpoint)
    modes: tuple[Mode, ...] = config.modes if model.config.is_retro else ("off",)
    task: PerplexityTask | DocsQaTask | QaTask
    if config.task == "qa":
        task = open_qa_task(config, checkpoint, tokenizer, model)
        num_neighbors = task.layout.passages
    else:
        num_neighbors = checkpoint.setting("num_neighbors", config.num_neighbors) if set(modes) - {"off"} else 0
        if config.task == "perplexity":
            task = _perplexity(config, checkpoint, release, tokenizer, modes, num_neighbors)
        else:
            task = _docs_qa(config, checkpoint, release, tokenizer, modes, num_neighbors)
    if task.num_units == 0:
        raise ConfigError(f"{config.task}: nothing to evaluate, the material has no {task.unit}")
    language_model = _language_model(config, checkpoint, tokenizer, model, num_neighbors, task)
    folder = _folder(config, checkpoint)
    identity = {
        "task": task.name,
        "version": task.version,
        "split": _split(config),
        "checkpoint": checkpoint.fingerprint,
        "release": release.fingerprint,
        "num_neighbors": num_neighbors,
        "precision": config.precision,
        "material": task.identity(),
    }
    log = open_log(folder, identity, _facts(checkpoint, model), config.overwrite)
    answer(task, language_model, log, progress)
    if isinstance(task, PerplexityTask):
        samples = task.samples(read_responses(folder, log.state), config.samples, config.seed)
        write_json_atomic(folder / SAMPLES_NAME, samples)
    write_results(folder)
    return folder


def answer(task: Task, model: LanguageModel, log: ResponseLog, progress: bool = True) -> None:
    """Ask the blocks that are not committed yet, committing each."""
    if log.state.finished:
        return
    from tqdm import tqdm

    with tqdm(
        total=task.num_units,
        initial=log.state.units,
        desc=task.name,
        unit=f" {task.unit}",
        disable=not progress,
        # A log file gets a line now and then instead of a moving bar.
        mininterval=0.5 if sys.stderr.isatty() else 15,
        file=sys.stderr,
    ) as bar:
        for number in range(log.state.blocks, task.num_blocks):
            block = task.run_block(number, model, log.state.carry)
            last = number + 1 == task.num_blocks
            log.commit(block.rows, block.carry, block.seconds, block.tokens, finished=last, units=block.units)
            bar.update(block.units)


def _open_model(config: EvalConfig, checkpoint: Checkpoint) -> RetroModel:
    from retro.inference.opening import resolve_device

    return checkpoint.load_model(resolve_device(config.device))


def _language_model(
    config: EvalConfig,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    model: RetroModel,
    num_neighbors: int,
    task: PerplexityTask | DocsQaTask | QaTask,
) -> LanguageModel:
    from retro.inference.retro_lm import RetroLM, check_chunk_length

    database = None  # the other tasks bring the neighbors' tokens
    if isinstance(task, PerplexityTask):
        check_chunk_length(model, task.queries)
        window = task.sequence_length
    elif isinstance(task, QaTask):
        window = task.window_length
    else:
        window, database = task.sequences.sequence_length, task.database
    return RetroLM(
        model,
        tokenizer,
        window_length=window,
        num_neighbors=num_neighbors,
        database=database,
        precision=config.precision,
        batch=config.batch,
        name=checkpoint.name,
    )


def _perplexity(
    config: EvalConfig,
    checkpoint: Checkpoint,
    release: Release,
    tokenizer: Tokenizer,
    modes: tuple[Mode, ...],
    num_neighbors: int,
) -> PerplexityTask:
    split = release.split(config.split)
    queries = open_chunk_store(split.chunks)
    database = open_chunk_store(release.database_chunks) if split.neighbors is not None else None
    table = None
    if split.neighbors is not None and database is not None:
        table = open_neighbor_table(split.neighbors, queries, database)
    datasets: dict[str, RetroDataset] = {
        mode: RetroDataset(
            queries,
            database,
            table,
            sequence_length=checkpoint.setting("sequence_length", config.sequence_length),
            num_neighbors=max(num_neighbors, 1),
            pad_id=tokenizer.pad_id,
            retrieval=mode,
            seed=config.seed,
            score_last_position=True,
            isolate_documents=checkpoint.isolates_documents,
        )
        for mode in modes
    }
    return PerplexityTask(
        datasets,
        tokenizer,
        table=table,
        max_sequences=config.max_sequences,
        batch=config.batch,
        block_batches=config.block_batches,
        overlap_neighbors=config.overlap_neighbors,
    )


def _docs_qa(
    config: EvalConfig,
    checkpoint: Checkpoint,
    release: Release,
    tokenizer: Tokenizer,
    modes: tuple[Mode, ...],
    num_neighbors: int,
) -> DocsQaTask:
    folder = _questions_folder(config, release)
    test = open_question_sequences(folder, "test")
    if test.tokenizer != tokenizer.fingerprint:
        raise ConfigError(
            f"{folder}: expected questions in tokens of {tokenizer.fingerprint}, found {test.tokenizer}; "
            "prepare them with the release of this run"
        )
    database = open_chunk_store(question_database(folder))
    if config.database is not None:
        from retro.inference.live_questions import ask_database

        other = open_release(config.database)
        if not set(modes) - {"off"}:
            raise ConfigError(f"database: {checkpoint.folder} is asked without retrieval; remove it")
        test = ask_database(folder, test, release, other, tokenizer, config.device)
        database = open_chunk_store(other.database_chunks)
    datasets: dict[str, QuestionDataset] = {
        mode: QuestionDataset(test, database, max(num_neighbors, 1), tokenizer.pad_id, retrieval=mode, seed=config.seed)
        for mode in modes
    }
    return DocsQaTask(
        datasets,
        open_question_sequences(folder, "train").questions,
        database,
        tokenizer,
        max_questions=config.max_questions,
        max_answer_tokens=config.max_answer_tokens,
        batch=config.batch,
        block_batches=config.block_batches,
    )


def _split(config: EvalConfig) -> str:
    if config.qa is not None:
        return config.qa.split
    return config.split if config.task == "perplexity" else "test"


def _questions_folder(config: EvalConfig, release: Release) -> Path:
    """The folder that the configuration names, by path or by its name in the release."""
    if config.questions is not None and config.questions not in release.questions:
        return Path(config.questions)
    if config.questions is not None:
        return release.questions[config.questions]
    kinds = {name: open_manifest(folder).kind for name, folder in release.questions.items()}
    found = [name for name, kind in kinds.items() if kind == QUESTION_SEQUENCES_KIND]
    if len(found) != 1:
        listed = ", ".join(found) or "none"
        raise ConfigError(
            f"questions: expected exactly one set of questions in {release.path}, found {listed}; give "
            "questions=NAME or questions=FOLDER, or prepare the release with a questions section"
        )
    return release.questions[found[0]]


def _folder(config: EvalConfig, checkpoint: Checkpoint) -> Path:
    if config.output is None and checkpoint.run is None:
        raise ConfigError(
            f"output: {checkpoint.folder} lies in no run folder; say with output=FOLDER where eval/ is to be made"
        )
    base = Path(config.output) if config.output is not None else checkpoint.run
    assert base is not None
    return base / "eval" / config.folder_name


def _facts(checkpoint: Checkpoint, model: RetroModel) -> dict[str, Any]:
    """What the results repeat about the model."""
    from retro.model import count_parameters

    return {
        "checkpoint": str(checkpoint.folder),
        "step": checkpoint.step,
        "model": "retro" if model.config.is_retro else "gpt",
        "parameters": count_parameters(model),
    }
