"""Questions with their passages, for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from retro.artifacts.manifest import open_manifest
from retro.config.errors import ConfigError
from retro.data.qa.answers import AnswerFinder
from retro.data.qa.pointer import POINTER
from retro.data.qa.prepared import open_prepared
from retro.data.qa.question_file import QA_QUESTIONS_KIND, open_source_questions
from retro.data.qa.record import Passage, PreparedQuestion
from retro.data.qa.task import TaskDefinition

_WIDTH = 110


def show_questions(
    path: Path, split: str | None, ids: list[str], count: int, passages: int, seed: int
) -> Iterator[str]:
    """Lines about the questions named, or `count` seeded random ones, of what `retro qa prepare` made.

    path: its folder, its questions.json, or the folder of an artifact of questions, prepared or not; split: None = the
    last one; passages: so many of each. Raises ArtifactError, and ConfigError for an id or split that is not there.
    """
    path = Path(path)
    if path.is_dir() and not (path / POINTER).is_file() and open_manifest(path).kind == QA_QUESTIONS_KIND:
        source = open_source_questions(path)
        task, splits = source.task, source.splits
        chosen = split or splits[-1]
        questions = [PreparedQuestion(item.question, item.passages) for item in source.iter(chosen)]
        counts, recall = {name: source.count(name) for name in splits}, {}
    else:
        prepared = open_prepared(path)
        task, splits = prepared.task, prepared.splits
        chosen = split or splits[-1]
        questions = prepared.read(chosen)
        counts, recall = {name: prepared.count(name) for name in splits}, prepared.recall(chosen)
    yield f"{task.name}, version {task.version}: " + ", ".join(f"{counts[name]:,} {name}" for name in splits)
    yield from _recall_lines(recall, chosen)
    for number in _numbers(questions, ids, count, seed, chosen):
        yield ""
        yield from _question_lines(questions[number], task, passages)


def _numbers(questions: list[PreparedQuestion], ids: list[str], count: int, seed: int, split: str) -> list[int]:
    if not ids:
        drawn = np.random.default_rng(seed).choice(len(questions), size=min(count, len(questions)), replace=False)
        return sorted(drawn.tolist())
    places = {item.question.id: number for number, item in enumerate(questions)}
    for name in ids:
        if name not in places:
            raise ConfigError(f"id {name!r}: no such question in split {split}; correct it, or name another split")
    return [places[name] for name in ids]


def _recall_lines(recall: Mapping[str, Any], split: str) -> Iterator[str]:
    """Of the figures that retro/data/qa/recall.py makes."""
    for name in ("evidence", "answer"):
        shares = dict(recall.get(name) or {})
        asked = shares.pop("n", None)
        if shares:
            listed = ", ".join(
                f"{share:.3f} @{k}" for k, share in sorted(shares.items(), key=lambda item: int(item[0]))
            )
            yield f"recall of the {name} ({split}{f', {asked:,} questions' if asked is not None else ''}): {listed}"


def _question_lines(item: PreparedQuestion, task: TaskDefinition, passages: int) -> Iterator[str]:
    question = item.question
    facts = [f"{name} {value}" for name, value in (("group", question.group), ("relation", question.relation)) if value]
    if question.popularity is not None:
        facts.append(f"popularity {question.popularity:g}")
    if item.seen is not None:
        facts.append("evidence seen in training" if item.seen else "evidence not seen in training")
    yield f"=== {question.id}" + (f" ({', '.join(facts)})" if facts else "")
    yield from _wrapped(question.question, "    ")
    yield from _wrapped("answers: " + " | ".join(question.answers), "    ")
    if question.evidence:
        yield from _wrapped("evidence: " + ", ".join(question.evidence), "    ")
    finder = AnswerFinder(question.answers, task.answers_are)
    for label, given in (("", item.passages), ("oracle ", item.oracle)):
        for rank, passage in enumerate(given[:passages], start=1):
            yield f"  {label}{rank}. {_passage_title(passage, question.evidence, finder)}"
            yield from _wrapped(passage.text, "       | ")


def _passage_title(passage: Passage, evidence: tuple[str, ...], finder: AnswerFinder) -> str:
    parts = [passage.title or "(no title)"]
    if passage.document:
        parts.append(f"of {passage.document}")
    if passage.score == passage.score:
        parts.append(f"score {passage.score:.4g}")
    if passage.document in evidence:
        parts.append("EVIDENCE")
    if finder.found_in(passage.text):
        parts.append("HOLDS AN ANSWER")
    return ", ".join(parts)


def _wrapped(text: str, prefix: str) -> Iterator[str]:
    for line in text.splitlines() or [""]:
        yield from textwrap.wrap(line, _WIDTH, initial_indent=prefix, subsequent_indent=prefix) or [prefix.rstrip()]
