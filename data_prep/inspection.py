"""What is there, why it differs, whether it is still what it was: status, explain, verify. Nothing is changed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.pipeline import Step, iter_folders, steps
from data_prep.runner import shard_records
from data_prep.stage import Stage
from retro.artifacts.fingerprint import sha256_file
from retro.artifacts.manifest import MANIFEST_NAME, Manifest, input_path, open_manifest, verify_files
from retro.config.errors import RetroError
from retro.config.preparation import PrepConfig
from retro.data.chunk_store import CHUNKS_KIND, open_chunk_store
from retro.data.neighbor_table import NEIGHBORS_KIND, open_neighbor_table


@dataclass(frozen=True)
class StepStatus:
    """state: done | damaged | resumable | missing | waiting (its inputs are not finished); detail: one line."""

    step: str
    state: str
    folder: Path | None
    detail: str
    bytes: int = 0


def status(config: PrepConfig) -> list[StepStatus]:
    """State of every step of the configuration."""
    found: list[StepStatus] = []
    for step, stage, folder in iter_folders(config):
        found.append(_status_of(step, stage, folder))
        if found[-1].state == "damaged":
            break
    for step in steps(config)[len(found) :]:
        found.append(StepStatus(step.name, "waiting", None, "its inputs are not finished"))
    return found


def _status_of(step: Step, stage: Stage, folder: Path) -> StepStatus:
    if (folder / MANIFEST_NAME).is_file():
        try:
            manifest = open_manifest(folder, stage.kind)
        except RetroError as error:
            return StepStatus(step.name, "damaged", folder, str(error))
        size = sum(int(f["bytes"]) for f in manifest.all_files())
        return StepStatus(step.name, "done", folder, stage.summary(manifest.stats, manifest.rows), size)
    total = len(stage.plan())
    if folder.is_dir():
        done = len(shard_records(folder))
        return StepStatus(step.name, "resumable", folder, f"{done} of {total} shards done")
    return StepStatus(step.name, "missing", folder, f"{total} shards to do")


def explain(config: PrepConfig) -> Iterator[str]:
    """Per step: its folder, and for every other folder of the same stage which fields or inputs made it differ."""
    planned = list(iter_folders(config))
    own = {folder for _, _, folder in planned}
    for step, stage, folder in planned:
        state = _status_of(step, stage, folder).state
        yield f"{step.name}: {folder.name} ({state})"
        if state == "missing":
            for other in sorted(Path(config.root).glob(f"{stage.name}-*")):
                if other in own or not (other / MANIFEST_NAME).is_file():
                    continue
                yield f"  not {other.name}: {'; '.join(_differences(stage, other)) or 'the same fields (other inputs)'}"
    if len(planned) < len(steps(config)):
        names = ", ".join(step.name for step in steps(config)[len(planned) :])
        yield f"waiting for their inputs: {names}"


def _differences(stage: Stage, other: Path) -> list[str]:
    try:
        manifest = open_manifest(other)
    except RetroError as error:
        return [f"it cannot be opened ({error})"]
    found = []
    if manifest.stage_version != stage.version:
        found.append(f"stage version {manifest.stage_version}, here {stage.version}")
    here, there = _flatten(stage.config), _flatten(manifest.config)
    for key in sorted({*here, *there}):
        if here.get(key) != there.get(key):
            found.append(f"{key}: {_short(there.get(key))}, here {_short(here.get(key))}")
    fingerprints = stage.input_fingerprints()
    for name in sorted({*fingerprints, *manifest.inputs}):
        before = manifest.inputs.get(name, {}).get("fingerprint")
        if before != fingerprints.get(name):
            found.append(f"input {name}: {before}, here {fingerprints.get(name)}")
    return found


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        found: dict[str, Any] = {}
        for key, item in value.items():
            found.update(_flatten(item, f"{prefix}.{key}" if prefix else str(key)))
        return found
    return {prefix: json.dumps(value, sort_keys=True)}


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def verify(config: PrepConfig, fraction: float, seed: int = 0) -> Iterator[tuple[str, list[str]]]:
    """Per finished step (name, problems): all checksums, chunks and neighbors against what they refer to (no chunk
    crosses a document, no neighbor is of a document of its own sequence), and a seeded sample of shards made again.

    `fraction` of the shards, at least one per step when above 0. Repairs nothing.
    """
    for step, stage, folder in iter_folders(config):
        if not (folder / MANIFEST_NAME).is_file():
            yield step.name, [f"{folder}: not finished; `retro prep run` continues it"]
            return
        try:
            manifest = open_manifest(folder, stage.kind)
            problems = verify_files(folder, manifest) or _check_content(folder, manifest)
            problems += _recompute(stage, folder, manifest.shards, fraction, seed)
        except RetroError as error:
            yield step.name, [str(error)]
            return
        yield step.name, problems


def _check_content(folder: Path, manifest: Manifest) -> list[str]:
    try:
        if manifest.kind == CHUNKS_KIND:
            open_chunk_store(folder).verify()
        if manifest.kind == NEIGHBORS_KIND:
            queries, database = (open_chunk_store(input_path(folder, manifest, n)) for n in ("queries", "database"))
            open_neighbor_table(folder, queries, database).verify()
    except RetroError as error:
        return [str(error)]
    return []


def _recompute(stage: Stage, folder: Path, shards: list[dict[str, Any]], fraction: float, seed: int) -> list[str]:
    if fraction <= 0 or not shards:
        return []
    plan = {shard.name: shard for shard in stage.plan()}
    count = min(len(shards), max(1, round(fraction * len(shards))))
    chosen = np.random.default_rng(seed).choice(len(shards), size=count, replace=False)
    problems = []
    for index in sorted(int(i) for i in chosen):
        record = shards[index]
        if record["name"] not in plan:
            problems.append(f"{folder}: shard {record['name']} is not in the plan any more")
            continue
        with tempfile.TemporaryDirectory() as name:
            out = Path(name) / "shard"
            out.mkdir()
            result = stage.run_shard(plan[record["name"]], out)
            if result.rows != record["rows"]:
                problems.append(f"{folder}: shard {record['name']}: {record['rows']} rows, recomputed {result.rows}")
            made = {path.name: sha256_file(path) for path in out.iterdir()}
            recorded = {entry["name"]: entry["sha256"] for entry in record["files"]}
            for file in sorted({*made, *recorded}):
                if made.get(file) != recorded.get(file):
                    problems.append(f"{folder / file}: recomputed bytes differ from the recorded ones")
    return problems
