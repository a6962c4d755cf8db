"""Checks of one artifact folder: manifest, files, checksums, content, and a sample of shards made again."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.execution.records import FINISH_RECORD, RECORDS
from data_prep.inspection.compare import compare_files
from data_prep.inspection.content import check_content
from data_prep.stage import Stage
from retro.artifacts.fingerprint import fingerprint, sha256_file
from retro.artifacts.manifest import MANIFEST_NAME, Manifest, read_manifest
from retro.config.errors import ArtifactMissingError, RetroError

#: Artifacts up to so many bytes are read in full whatever the fraction: it takes seconds.
FULL_BELOW = 1 << 30
#: Statistics that are floats may differ in their last digits between machines, as the arrays behind them do.
_STATS_TOLERANCE = 1e-4
_BLOCK = 1 << 20

Meter = Callable[[int], None]


def _uncounted(count: int) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True)
class Sampling:
    """How much is checked. fraction: of the shards that are read and made again (at least one per artifact; 0 = none
    made again, 1 = everything, closing step included); seed: of the choice; full_below: bytes, see FULL_BELOW."""

    fraction: float = 0.01
    seed: int = 0
    full_below: int = FULL_BELOW


@dataclass
class Checked:
    """What was found of one artifact. problems and notes (differences within the tolerance, files that nobody
    recorded) are lines for people; files, bytes: read for their checksums; shards: made again."""

    name: str
    folder: Path
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    shards: int = 0


def check_files(
    checked: Checked, sampling: Sampling, remedy: str, meter: Meter = _uncounted, inputs_required: bool = True
) -> Manifest | None:
    """Manifest, records, sizes of all files, checksums, content. remedy: what to do about a damaged file;
    inputs_required: whether the folders that it was made from must be there.

    Returns the manifest if it is readable, None otherwise. `meter` is called with every number of bytes read.
    """
    folder = checked.folder
    try:
        manifest = read_manifest(folder)
    except RetroError as error:
        checked.problems.append(str(error))
        return None
    checked.problems += _check_identity(folder, manifest, remedy)
    checked.problems += _check_inputs(folder, manifest, remedy, inputs_required)
    checked.problems += _check_records(folder, manifest, remedy)
    before = len(checked.problems)
    sound = _check_sizes(checked, manifest, remedy)
    for entry in _read_for_checksums(manifest, sampling):
        if entry["name"] not in sound:
            continue
        try:
            found = _hash(folder / entry["name"], meter)
        except OSError as error:
            checked.problems.append(f"{folder / entry['name']}: not readable ({error.strerror or error}); {remedy}")
            continue
        checked.files += 1
        checked.bytes += int(entry["bytes"])
        if found != entry["sha256"]:
            checked.problems.append(
                f"{folder / entry['name']}: expected sha256 {entry['sha256'][:16]}, found {found[:16]}; {remedy}"
            )
    if len(checked.problems) == before:  # what is in a damaged file says nothing further
        checked.problems += check_content(folder, manifest)
    return manifest


def bytes_to_read(manifest: Manifest, sampling: Sampling) -> int:
    """What `check_files` will read for checksums."""
    return sum(int(entry["bytes"]) for entry in _read_for_checksums(manifest, sampling))


def chosen_shards(manifest: Manifest, sampling: Sampling) -> list[int]:
    """Places of the shards that are made again, ascending: a seeded sample, another one for each artifact."""
    count = len(manifest.shards)
    if sampling.fraction <= 0 or not count:
        return []
    size = min(count, max(1, round(sampling.fraction * count)))
    generator = np.random.default_rng([sampling.seed, int(manifest.fingerprint, 16)])
    return sorted(int(i) for i in generator.choice(count, size=size, replace=False))


def check_again(
    checked: Checked, stage: Stage, manifest: Manifest, sampling: Sampling, remedy: str, advance: Callable[[], None]
) -> None:
    """Make the chosen shards again in a temporary folder, and with fraction 1 the closing step; compare with the files.

    `advance` is called after each. Temporary files lie where the system keeps them (TMPDIR), never in the artifact.
    """
    chosen = chosen_shards(manifest, sampling)
    if not chosen:
        return
    plan = {shard.name: shard for shard in stage.plan()}
    missing = [record["name"] for record in manifest.shards if record["name"] not in plan]
    if missing or len(plan) != len(manifest.shards):
        checked.problems.append(
            f"{checked.folder}: expected the {len(plan)} shards of the plan, found {len(manifest.shards)} "
            f"recorded{', ' + missing[0] + ' among them' if missing else ''}; {remedy}"
        )
    bfloat16 = _in_bfloat16(manifest.config)
    for index in chosen:
        record = manifest.shards[index]
        if record["name"] in plan:
            with tempfile.TemporaryDirectory(prefix="retro-verify-") as name:
                out = Path(name)
                result = stage.run_shard(plan[record["name"]], out)
                part = f"shard {record['name']}"
                _compare(checked, part, record["files"], out, remedy, bfloat16)
                if result.rows != record["rows"]:
                    checked.problems.append(
                        f"{checked.folder}: {part}: expected {result.rows} rows, found {record['rows']}; {remedy}"
                    )
                _compare_stats(checked, part, record["stats"], result.stats, remedy)
            checked.shards += 1
        advance()
    if sampling.fraction >= 1:
        with tempfile.TemporaryDirectory(prefix="retro-verify-") as name:
            stats = stage.finish(checked.folder, Path(name), manifest.shards)
            _compare(checked, "closing step", manifest.files, Path(name), remedy, bfloat16)
            _compare_stats(checked, "closing step", manifest.stats, stats, remedy)
        advance()


def _check_identity(folder: Path, manifest: Manifest, remedy: str) -> list[str]:
    inputs = {name: entry["fingerprint"] for name, entry in manifest.inputs.items()}
    expected = fingerprint(manifest.stage, manifest.stage_version, manifest.config, inputs)
    if manifest.fingerprint != expected:
        return [
            f"{folder / MANIFEST_NAME}: expected fingerprint {expected} for its fields and inputs, found "
            f"{manifest.fingerprint}: it was edited; {remedy}"
        ]
    return []


def _check_inputs(folder: Path, manifest: Manifest, remedy: str, required: bool) -> list[str]:
    """The inputs lie where the manifest says and are the recorded ones. One that cannot be read has its own check."""
    found = []
    for name, entry in manifest.inputs.items():
        path = Path(os.path.normpath(folder.resolve() / entry["path"]))
        try:
            there = read_manifest(path).fingerprint
        except ArtifactMissingError:
            there = "nothing" if required else entry["fingerprint"]
        except RetroError:
            continue
        if there != entry["fingerprint"]:
            expected = f"{entry['kind']} {entry['fingerprint']} at {path}"
            found.append(f"{folder / MANIFEST_NAME}: input {name}: expected {expected}, found {there}; {remedy}")
    return found


def _check_records(folder: Path, manifest: Manifest, remedy: str) -> list[str]:
    """The manifest repeats the records of the shards; where these are there, they must agree."""
    closing = {"name": FINISH_RECORD, "rows": 0, "files": manifest.files, "stats": manifest.stats}
    found = []
    for expected in [*manifest.shards, closing]:
        path = folder / RECORDS / f"{expected['name']}.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue  # an archive need not bring them
        except (OSError, ValueError) as error:
            found.append(f"{path}: not a readable record ({error}); {remedy}")
            continue
        for key, value in expected.items():
            if not isinstance(record, dict) or record.get(key) != value:
                found.append(
                    f"{folder / MANIFEST_NAME}: {expected['name']}: {key} differ from those in {path}: "
                    f"one of the two was edited; {remedy}"
                )
    return found


def _check_sizes(checked: Checked, manifest: Manifest, remedy: str) -> set[str]:
    """Names of the files that are there with their sizes; what else lies there is noted."""
    sound = set()
    for entry in manifest.all_files():
        path = checked.folder / entry["name"]
        found = f"{path.stat().st_size} bytes" if path.is_file() else "no such file"
        if found == f"{entry['bytes']} bytes":
            sound.add(entry["name"])
        else:
            checked.problems.append(f"{path}: expected {entry['bytes']} bytes, found {found}; {remedy}")
    known = {entry["name"] for entry in manifest.all_files()} | {MANIFEST_NAME, RECORDS}
    with os.scandir(checked.folder) as entries:
        # Hidden names are those of runs at work.
        strange = sorted(e.name for e in entries if e.name not in known and not e.name.startswith("."))
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        checked.notes.append(f"{checked.folder}: not of the artifact: {', '.join(strange[:3])}{more}")
    return sound


def _read_for_checksums(manifest: Manifest, sampling: Sampling) -> list[dict[str, Any]]:
    files = manifest.all_files()
    if sampling.fraction >= 1 or sum(int(entry["bytes"]) for entry in files) <= sampling.full_below:
        return files
    chosen = [entry for index in chosen_shards(manifest, sampling) for entry in manifest.shards[index]["files"]]
    closing = manifest.files
    if not closing or sampling.fraction <= 0:
        return chosen
    size = min(len(closing), max(1, round(sampling.fraction * len(closing))))
    generator = np.random.default_rng([sampling.seed, int(manifest.fingerprint, 16), 1])
    return chosen + [closing[int(i)] for i in sorted(generator.choice(len(closing), size=size, replace=False))]


def _compare(
    checked: Checked, part: str, recorded: list[dict[str, Any]], out: Path, remedy: str, bfloat16: bool
) -> None:
    """Files of one part made again in `out` against the recorded ones."""
    made = {path.name: path for path in out.iterdir()}
    expected = {entry["name"]: entry["sha256"] for entry in recorded}
    for name in sorted({*made, *expected}):
        stored = checked.folder / name
        if name not in made or name not in expected:
            where = "made again, but not recorded" if name in made else "recorded, but not made again"
            checked.problems.append(f"{stored}: {part}: {where}; {remedy}")
            continue
        # The recorded checksum says what the stage wrote; whether the file still has it is another check.
        if sha256_file(made[name]) == expected[name] or not stored.is_file():
            continue
        comparison = compare_files(stored, made[name], bfloat16)
        line = f"{stored}: {part} made again: {comparison.found}"
        if comparison.equal:
            checked.problems.append(
                f"{stored}: {part}: the recorded sha256 is not that of the file, whose content is right; {remedy}"
            )
        elif comparison.within:
            checked.notes.append(line)
        else:
            checked.problems.append(f"{line}; {remedy}")


def _compare_stats(checked: Checked, part: str, recorded: Any, made: Any, remedy: str) -> None:
    made = json.loads(json.dumps(made))
    for key in sorted({*recorded, *made}):
        if key not in recorded or key not in made or not _alike(recorded[key], made[key]):
            checked.problems.append(
                f"{checked.folder / MANIFEST_NAME}: {part}: expected {key} = {made.get(key)!r}, found "
                f"{recorded.get(key)!r}; {remedy}"
            )


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_STATS_TOLERANCE, abs_tol=_STATS_TOLERANCE**2)
    return type(one) is type(other) and bool(one == other)


def _in_bfloat16(config: dict[str, Any]) -> bool:
    """Whether a recipe among the fields computes in bfloat16."""
    recipe = config.get("recipe")
    return isinstance(recipe, dict) and recipe.get("precision") == "bf16"


def _hash(path: Path, meter: Meter) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            meter(len(block))
    return digest.hexdigest()
