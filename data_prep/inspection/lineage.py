"""Why two artifacts differ: their own fields, or the first ancestors in which their inputs differ."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.corpus_changes import CORPUS_FILES_NAME, read_corpus_files
from data_prep.ingest import IngestStage
from data_prep.stage import Stage
from retro.artifacts.manifest import read_manifest
from retro.config.errors import ArtifactError

#: Fields that repeat something of an input: where that input differs, they are no cause of their own.
_COPIED = {"recipe": "embedder"}
_SHOWN = 3


@dataclass(frozen=True)
class Made:
    """What made an artifact: program, configuration and inputs. inputs: name -> (fingerprint, folder); files: of the
    corpus, relative path -> SHA-256, of an ingest that says so."""

    label: str
    stage: str
    stage_version: int
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, tuple[str, Path]]
    files: Callable[[], dict[str, str] | None] = lambda: None


@dataclass(frozen=True)
class Cause:
    """One difference. path: names of the inputs that lead to it, from the artifact compared (empty = in itself)."""

    path: tuple[str, ...]
    what: str

    def __str__(self) -> str:
        return f"{' <- '.join(f'input {name}' for name in self.path)}: {self.what}" if self.path else self.what


def made_by_folder(folder: str | Path) -> Made:
    """Read from a manifest. Files and inputs are not checked: a damaged artifact can be explained too.

    Raises ArtifactError subclasses where there is no manifest or one that cannot be read.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    listed = folder / CORPUS_FILES_NAME
    return Made(
        label=folder.name,
        stage=manifest.stage,
        stage_version=manifest.stage_version,
        fingerprint=manifest.fingerprint,
        config=manifest.config,
        inputs={
            name: (entry["fingerprint"], Path(os.path.normpath(folder / entry["path"])))
            for name, entry in manifest.inputs.items()
        },
        files=lambda: dict(read_corpus_files(folder / CORPUS_FILES_NAME)) if listed.is_file() else None,
    )


def made_by_stage(stage: Stage) -> Made:
    """Of a stage that may not have run yet. Raises ArtifactError where an input is not usable."""
    fingerprints = stage.input_fingerprints()
    return Made(
        label=f"{stage.name}-{stage.fingerprint()}",
        stage=stage.name,
        stage_version=stage.version,
        fingerprint=stage.fingerprint(),
        config=stage.config,
        inputs={name: (fingerprints[name], Path(path)) for name, path in stage.inputs.items()},
        files=lambda: (
            {f.relative: f.sha256 for f in stage.reader.described()} if isinstance(stage, IngestStage) else None
        ),
    )


def causes(one: Made, other: Made) -> list[Cause]:
    """Where `one` and `other` begin to differ, nearest first, each by its shortest path; empty = the same artifact.

    An ancestor is looked into where both have it under the same names; what differs in it is told once.
    """
    found: list[Cause] = []
    seen: set[tuple[str, str]] = set()
    waiting: deque[tuple[tuple[str, ...], Made, Made]] = deque([((), one, other)])
    while waiting:
        path, a, b = waiting.popleft()
        if a.fingerprint == b.fingerprint or (a.fingerprint, b.fingerprint) in seen:
            continue
        seen.add((a.fingerprint, b.fingerprint))
        found += [Cause(path, what) for what in _own_differences(a, b)]
        for name in sorted({*a.inputs, *b.inputs}):
            if name not in a.inputs or name not in b.inputs:
                with_it, without = (a, b) if name in a.inputs else (b, a)
                found.append(Cause(path, f"input {name}: {with_it.label} has one, {without.label} has none"))
                continue
            (first, first_folder), (second, second_folder) = a.inputs[name], b.inputs[name]
            if first == second:
                continue
            try:
                waiting.append(((*path, name), made_by_folder(first_folder), made_by_folder(second_folder)))
            except ArtifactError as error:
                found.append(Cause((*path, name), f"fingerprint {first} / {second}, no further: {error}"))
    return found


def _own_differences(a: Made, b: Made) -> list[str]:
    """Stage, version and fields; values as `that of a / that of b`."""
    if a.stage != b.stage:
        return [f"made by stage {a.stage} / {b.stage}"]
    found = []
    if a.stage_version != b.stage_version:
        found.append(f"stage version {a.stage_version} / {b.stage_version}")
    here, there = _flatten(a.config), _flatten(b.config)
    corpus = {key for key in {*here, *there} if key == "corpus" or key.startswith("corpus.")}
    if any(here.get(key) != there.get(key) for key in corpus):
        found.append(_corpus_change(a, b))
    copied = {prefix for prefix, name in _COPIED.items() if name in a.inputs and a.inputs[name] != b.inputs.get(name)}
    for key in sorted({*here, *there} - corpus):
        if key.split(".")[0] in copied:
            continue
        if here.get(key) != there.get(key):
            found.append(f"config {key} {_short(here.get(key))} / {_short(there.get(key))}")
    if not found and a.inputs.keys() == b.inputs.keys() and all(a.inputs[n][0] == b.inputs[n][0] for n in a.inputs):
        found.append(f"equal fields and inputs, but fingerprint {a.fingerprint} / {b.fingerprint}: an edited manifest")
    return found


def _corpus_change(a: Made, b: Made) -> str:
    """How the corpus of two ingests differs, as far as its identity says."""
    here, there = a.config.get("corpus"), b.config.get("corpus")
    if not (isinstance(here, dict) and isinstance(there, dict)):
        return f"the corpus {_short(json.dumps(here))} / {_short(json.dumps(there))}"
    same: list[str] = []
    changed: list[str] = []
    for key in sorted({*here, *there}):
        first, second = here.get(key), there.get(key)
        if isinstance(first, int) and isinstance(second, int):
            counted = f"{key} {first:,} / {second:,}"
            (changed if first != second else same).append(counted if first != second else f"{key} {first:,} both")
        elif first != second:
            changed.append(f"{key} {_short(first, 16)} / {_short(second, 16)}")
    return f"the corpus changed: {', '.join([*changed, *same, *_file_changes(a, b)])}"


def _file_changes(a: Made, b: Made) -> list[str]:
    """Which files one has and the other has not, and which differ, where both say what files they had."""
    try:
        here, there = a.files(), b.files()
    except ArtifactError:
        return []
    if not here or not there:
        return []
    found = []
    for names, what in (
        (here.keys() - there.keys(), "of the first alone"),
        (there.keys() - here.keys(), "of the second alone"),
        ({name for name in here.keys() & there.keys() if here[name] != there[name]}, "with another content"),
    ):
        if names:
            shown = sorted(names)[:_SHOWN]
            more = ", ..." if len(names) > len(shown) else ""
            found.append(f"{len(names):,} file(s) {what} ({', '.join(shown)}{more})")
    return found


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        found: dict[str, Any] = {}
        for key, item in value.items():
            found.update(_flatten(item, f"{prefix}.{key}" if prefix else str(key)))
        return found
    return {prefix: json.dumps(value, sort_keys=True, ensure_ascii=False)} if prefix else {}


def _short(value: Any, length: int = 60) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= length else text[: length - 3] + "..."
