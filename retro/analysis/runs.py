"""Open run folders: `runs/<name>/{config.yaml, release.json, environment.json, metrics.jsonl, eval/<task>/...}`.

Whatever is absent is absent (None or empty); what is there but unreadable is an ArtifactCorruptError. The one exception
is the last line of metrics.jsonl: a killed run leaves it half written, so it is dropped with a note.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from retro.config.errors import ArtifactCorruptError, ArtifactMissingError

TRAIN_FIELDS = ("step", "tokens", "loss", "tokens_per_s", "mfu", "elapsed_s")
#: What a run may lack: a validation without bytes, a log of an earlier version.
_MAY_LACK = ("bits_per_byte", "mfu")
VALIDATION_FIELDS = ("step", "loss", "bits_per_byte", "elapsed_s")


@dataclasses.dataclass(frozen=True)
class Metrics:
    """metrics.jsonl as columns.

    train: TRAIN_FIELDS -> float64 [lines]; validation: VALIDATION_FIELDS -> float64 [lines]. Steps count optimizer
    steps, elapsed_s training seconds (validation and checkpoints excluded), loss is in nats per token. A figure written
    as null or NaN is NaN.
    """

    train: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One `eval/<name>` folder: results.json; responses.jsonl and (task qa) scores.jsonl line by line, and samples.json
    (each empty if absent)."""

    name: str
    path: Path
    results: dict[str, Any]
    responses: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    scores: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def task(self) -> str:
        """`perplexity`, `docs_qa`, ..."""
        return str(self.results.get("task", self.name))

    @property
    def modes(self) -> list[str]:
        """Retrieval modes in the order of results.json, `on`, `off`, `shuffled` first."""
        found = list(self.results["modes"])
        usual = [mode for mode in ("on", "off", "shuffled") if mode in found]
        return usual + [mode for mode in found if mode not in usual]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder. `notes` are sentences about what was tolerated while reading it."""

    path: Path
    name: str
    model: str  # "gpt" or "retro"
    config: dict[str, Any]
    config_text: str
    release: dict[str, Any]
    environment: dict[str, Any]
    metrics: Metrics | None
    evaluations: dict[str, Evaluation]
    notes: tuple[str, ...]


def load_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Open run folders; names that repeat are told apart by their parent folder's name."""
    runs = [load_run(path) for path in paths]
    names = [run.name for run in runs]
    return [
        dataclasses.replace(run, name=f"{run.path.resolve().parent.name}/{run.name}")
        if names.count(run.name) > 1
        else run
        for run in runs
    ]


def load_run(path: str | Path) -> Run:
    """Open one run folder.

    Raises ArtifactMissingError (no folder, or nothing of a run in it) and ArtifactCorruptError (a file that cannot be
    read as what it should be, with file and line).
    """
    path = Path(path)
    if not path.is_dir():
        raise ArtifactMissingError(f"{path}: no such run folder; `retro train` makes one, or correct the path")
    if not any((path / name).exists() for name in ("config.yaml", "metrics.jsonl", "eval")):
        raise ArtifactMissingError(
            f"{path}: not a run folder (expected config.yaml, metrics.jsonl or eval/ in it, found none of them)"
        )
    config_text = _read_text(path / "config.yaml") if (path / "config.yaml").is_file() else ""
    notes: list[str] = []
    evaluations = {}
    for folder in sorted((path / "eval").iterdir()) if (path / "eval").is_dir() else []:
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        if not (folder / "results.json").is_file():
            notes.append(f"{folder}: no results.json, so this evaluation is unfinished and left out")
            continue
        evaluations[folder.name] = _load_evaluation(folder)
    config = _parse_yaml(path / "config.yaml", config_text)
    metrics = None
    if (path / "metrics.jsonl").is_file():
        metrics, metric_notes = _load_metrics(path / "metrics.jsonl")
        notes.extend(metric_notes)
    return Run(
        path=path,
        name=path.resolve().name,
        model=_model_kind(config, evaluations),
        config=config,
        config_text=config_text,
        release=_read_object(path / "release.json"),
        environment=_read_object(path / "environment.json"),
        metrics=metrics,
        evaluations=evaluations,
        notes=tuple(notes),
    )


def _model_kind(config: dict[str, Any], evaluations: dict[str, Evaluation]) -> str:
    for evaluation in evaluations.values():
        if evaluation.results.get("model") in ("gpt", "retro"):
            return str(evaluation.results["model"])
    model = config.get("model")
    layers = model.get("cross_attention_layers") if isinstance(model, dict) else None
    return "retro" if layers else "gpt"


def _load_metrics(path: Path) -> tuple[Metrics, list[str]]:
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    fields = {"train": TRAIN_FIELDS, "validation": VALIDATION_FIELDS}
    notes = []
    lines = _read_text(path, errors="surrogateescape").split("\n")
    last = len(lines) if lines[-1] else len(lines) - 1
    for number, line in enumerate(lines[:last], start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"expected an object, found {type(row).__name__}")
        except ValueError as error:
            if number == len(lines):  # no newline after it: the run was killed while writing this line
                notes.append(f"{path}: the last line ({number}) is cut off, as a killed run leaves it; left out")
                break
            raise ArtifactCorruptError(
                f"{path}:{number}: expected one JSON object per line, found {line[:60]!r} ({error}); "
                "restore the file, or resume the run from a checkpoint, which rewrites it"
            ) from None
        event = row.get("event")
        if event in rows:
            rows[event].append({name: _figure(row, name, path, number) for name in fields[event]})
    columns = {
        event: {name: np.array([row[name] for row in rows[event]], np.float64) for name in fields[event]}
        for event in rows
    }
    for event, column in columns.items():
        if np.any(np.diff(column["step"]) < 0):
            at = int(np.argmax(np.diff(column["step"]) < 0))
            raise ArtifactCorruptError(
                f"{path}: expected {event} steps in rising order, found step {column['step'][at + 1]:.0f} "
                f"after {column['step'][at]:.0f}; restore the file or resume the run from a checkpoint"
            )
        lost = int(np.sum(~np.isfinite(column["loss"])))
        if lost:
            notes.append(f"{path}: {lost} {event} losses are not finite; the curves have gaps there")
    return Metrics(columns["train"], columns["validation"]), notes


def _figure(row: dict[str, Any], name: str, path: Path, number: int) -> float:
    if name not in row:
        if name in _MAY_LACK:
            return math.nan
        raise ArtifactCorruptError(f"{path}:{number}: expected the field {name!r}, found {sorted(row)}")
    value = row[name]
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArtifactCorruptError(f"{path}:{number}: expected a number for {name!r}, found {value!r}")
    return float(value)


def _load_evaluation(folder: Path) -> Evaluation:
    results = _read_object(folder / "results.json")
    columns = "arms" if results.get("task") == "qa" else "modes"
    if not isinstance(results.get(columns), dict):
        found = sorted(results)
        raise ArtifactCorruptError(f"{folder / 'results.json'}: expected an object {columns!r}, found {found}")
    responses_path, samples_path = folder / "responses.jsonl", folder / "samples.json"
    responses = list(_read_lines(responses_path)) if responses_path.is_file() else []
    scores_path = folder / "scores.jsonl"
    scores = list(_read_lines(scores_path)) if scores_path.is_file() else []
    samples: Any = _parse_json(samples_path) if samples_path.is_file() else []
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise ArtifactCorruptError(f"{samples_path}: expected a list of objects; run `retro eval` again")
    return Evaluation(folder.name, folder, results, responses, samples, scores)


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            row = error
        if not isinstance(row, dict):
            raise ArtifactCorruptError(
                f"{path}:{number}: expected one JSON object per line, found {line[:60]!r}; run `retro eval` again"
            )
        yield row


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = _parse_json(path)
    if not isinstance(value, dict):
        raise ArtifactCorruptError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _parse_json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except ValueError as error:
        raise ArtifactCorruptError(f"{path}: not readable as JSON ({error}); make it again") from None


def _parse_yaml(path: Path, text: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ArtifactCorruptError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(value, dict):
        raise ArtifactCorruptError(f"{path}: expected a mapping, found {type(value).__name__}")
    return value


def _read_text(path: Path, errors: str = "strict") -> str:
    try:
        return path.read_bytes().decode("utf-8", errors)
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactCorruptError(f"{path}: not readable as UTF-8 text ({error})") from None
