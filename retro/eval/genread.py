"""Prepared questions whose passages a language model has written: asked in blocks, then one artifact."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retro.artifacts.fingerprint import fingerprint
from retro.artifacts.manifest import Manifest, describe_file, open_manifest, write_manifest
from retro.artifacts.new_folder import new_folder
from retro.config.errors import ConfigError
from retro.config.qa_genread import GenReadConfig
from retro.data.qa.answers import AnswerFinder
from retro.data.qa.pointer import POINTER, write_pointer
from retro.data.qa.prepared import QA_PASSAGES_KIND, PreparedQuestions, open_prepared, write_prepared
from retro.data.qa.recall import RecallCounts, evidence_rank, recall_figures
from retro.data.qa.record import Passage, PreparedQuestion
from retro.data.qa.task import TaskDefinition, task_to_dict
from retro.eval.responses import State, open_log, read_responses
from retro.eval.runner import answer
from retro.eval.tasks.genread import NAME, VERSION, GenReadTask

#: What the model wrote, block by block, below the output folder.
DOCUMENTS = "documents"
STAGE, STAGE_VERSION = "qa_genread", 1


def write_passages(config: GenReadConfig, progress: bool = True) -> tuple[Path, State]:
    """Write the documents and the prepared questions that hold them; returns the path of questions.json, and what it
    took. Killed and started again it goes on after the last block; a finished folder is left as it is.

    Raises ConfigError, ArtifactError subclasses; ArtifactMismatchError for a folder of something else.
    """
    from retro.inference.checkpoint import open_checkpoint
    from retro.inference.opening import open_language_model

    prepared = open_prepared(config.questions)
    questions = {split: prepared.read(split)[: config.max_questions] for split in config.splits or prepared.splits}
    if not any(questions.values()):
        raise ConfigError(f"{config.questions}: expected questions, found none in {', '.join(questions)}")
    task = GenReadTask(
        questions,
        prepared.fingerprint,
        prompt=config.prompt,
        tokens=config.tokens,
        batch=config.batch,
        block_batches=config.block_batches,
    )
    checkpoint = open_checkpoint(config.checkpoint)
    model, release = open_language_model(
        checkpoint,
        release=config.release,
        retrieval=False,
        device=config.device,
        precision=config.precision,
        batch=config.batch,
    )
    identity = {
        "task": NAME,
        "version": VERSION,
        "checkpoint": checkpoint.fingerprint,
        "release": release.fingerprint,
        "precision": config.precision,
        "material": task.identity(),
    }
    output = Path(config.output)
    log = open_log(output / DOCUMENTS, identity, {"model": checkpoint.name})
    answer(task, model, log, progress)
    written = {(row["split"], row["id"]): row["text"] for row in read_responses(output / DOCUMENTS, log.state)}
    passages = {
        split: [_with_document(q, written[split, q.question.id]) for q in part] for split, part in questions.items()
    }
    made = {
        "method": NAME,
        "model": checkpoint.name,
        "checkpoint": checkpoint.fingerprint,
        "tokens": config.tokens,
        "prompt": config.prompt,
    }
    folder = output / f"{STAGE}-{fingerprint(STAGE, STAGE_VERSION, identity, {})}"
    if not folder.exists():
        _write_artifact(folder, passages, prepared, made, identity)
    write_pointer(output / POINTER, folder)
    return output / POINTER, log.state


def _with_document(prepared: PreparedQuestion, text: str | None) -> PreparedQuestion:
    """The question with the written document as its only passage; without any where nothing was written."""
    text = " ".join((text or "").split())
    return dataclasses.replace(prepared, passages=(Passage("", text),) if text else ())


def _write_artifact(
    folder: Path,
    passages: Mapping[str, Sequence[PreparedQuestion]],
    source: PreparedQuestions,
    made: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> None:
    task = source.task
    with new_folder(folder) as temporary:
        shards = []
        for split, questions in passages.items():
            path = temporary / f"prepared-{split}-00000.jsonl"
            write_prepared(path, questions)
            files = [describe_file(path)]
            shards.append({"name": f"{split}-00000", "rows": len(questions), "files": files, "stats": {}})
        stats = {
            "task": task_to_dict(task),
            "release": None,
            "retrieval": dict(made),
            "splits": [
                {"split": split, "questions": len(questions), "recall": _recall(questions, task)}
                for split, questions in passages.items()
            ],
        }
        origin = open_manifest(source.folder, QA_PASSAGES_KIND)
        entry = {
            "kind": origin.kind,
            "fingerprint": origin.fingerprint,
            "path": os.path.relpath(source.folder.resolve(), folder.resolve()),
        }
        write_manifest(
            temporary,
            Manifest(
                kind=QA_PASSAGES_KIND,
                stage=STAGE,
                stage_version=STAGE_VERSION,
                fingerprint=fingerprint(STAGE, STAGE_VERSION, identity, {}),
                config=dict(identity),
                inputs={"questions": entry},
                shards=shards,
                files=[],
                stats=stats,
            ),
        )


def _recall(questions: Sequence[PreparedQuestion], task: TaskDefinition) -> dict[str, Any]:
    counts = RecallCounts()
    for prepared in questions:
        question = prepared.question
        rank = AnswerFinder(question.answers, task.answers_are).first_in([p.text for p in prepared.passages])
        counts.add(prepared, evidence_rank(question, prepared.passages), rank)
    return recall_figures([counts.counts()])
