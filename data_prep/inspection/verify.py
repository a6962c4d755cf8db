"""`retro prep verify`: is what is there still what it was, and what it should be. Nothing is repaired or deleted.

Of every artifact: the manifest is one and agrees with the records and with its own fingerprint, every file is there
with its size, checksums, what the content means (chunks lie in their documents, no neighbor is of the query's own), and
a seeded sample of shards is made again and compared: integers and bytes exactly, floats within a tolerance that
data_prep/inspection/compare.py gives and explains. A difference in a float's last bit is therefore fine when made
again, but the checksum of a file must be the recorded one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.inspection.artifact_check import (
    Checked,
    Sampling,
    bytes_to_read,
    check_again,
    check_files,
    chosen_shards,
)
from data_prep.inspection.meter import Meter
from data_prep.pipeline import Step, iter_folders, steps
from data_prep.stage import Stage
from retro.artifacts.manifest import MANIFEST_NAME, read_manifest
from retro.artifacts.release import release_fingerprint
from retro.config.errors import ArtifactCorruptError, ArtifactMissingError, RetroError
from retro.config.preparation import PrepConfig

RELEASE_NAME = "release.json"
_REMAKE = "restore it from a copy, or move the folder away and `retro prep run` makes it again"
_RESTORE = "restore it from a copy or from the archive"


def verify(config: PrepConfig, sampling: Sampling, progress: bool = False) -> Iterator[Checked]:
    """Every step of the configuration that is finished, then what was made from a damaged one.

    A step whose inputs are damaged cannot be made again: its files are checked all the same. A step that is not
    finished is a problem, and so is a configuration error that only shows when a stage is built.
    """
    checked: list[Path] = []
    bad: set[Path] = set()
    last: Step | None = None
    try:
        for step, stage, folder in iter_folders(config):
            last = step
            if not (folder / MANIFEST_NAME).is_file():
                yield Checked(step.name, folder, [f"{folder}: not finished; `retro prep run` continues it"])
                return
            checked.append(folder)
            wrong = [path for path in stage.inputs.values() if path in bad]
            found = _check_step(step.name, stage, folder, sampling, progress, wrong)
            if found.problems or wrong:
                bad.add(folder)
            yield found
    except RetroError as error:
        names = [step.name for step in steps(config)]
        follows = names[0] if last is None else names[names.index(last.name) + 1]
        yield Checked(follows, Path(config.root), [f"{follows} cannot be made again: {error}"])
        if not checked and (Path(config.root) / RELEASE_NAME).is_file():
            yield from verify_release(config.root, sampling, progress)  # as when the corpus is gone
        for folder in _made_from(Path(config.root), checked):
            yield _check_folder(f"{folder.name} (files only)", folder, sampling, _REMAKE, progress)


def verify_release(path: str | Path, sampling: Sampling, progress: bool = False) -> Iterator[Checked]:
    """The members of a release and the inputs that they were made from, as far as these are there: checksums and
    content. Nothing can be made again without the configuration.

    Raises ArtifactMissingError or ArtifactCorruptError if there is no release or one that cannot be read.
    """
    path = release_file(path)
    content = _read_release(path)
    checked = Checked(path.name, path.parent)
    if release_fingerprint(content) != content["fingerprint"]:
        checked.problems.append(
            f"{path}: expected fingerprint {release_fingerprint(content)} for its members, found "
            f"{content['fingerprint']}: it was edited; {_RESTORE}"
        )
    yield checked
    waiting = [(label, path.parent, entry, True) for label, entry in _members(content)]
    done: dict[Path, str] = {}
    while waiting:
        label, place, entry, required = waiting.pop(0)
        folder = Path(os.path.normpath(place.resolve() / entry["path"]))
        if folder in done:
            if done[folder] != entry["fingerprint"]:
                yield Checked(label, folder, [_mismatch(label, folder, entry["fingerprint"], done[folder])])
            continue
        if not required and not folder.is_dir():
            continue  # what a member was made from need not travel with it
        found = _check_folder(label, folder, sampling, _RESTORE, progress, inputs_required=False)
        try:
            manifest = read_manifest(folder, entry["kind"])
        except RetroError as error:
            done[folder] = entry["fingerprint"]
            if str(error) not in found.problems:
                found.problems.append(str(error))
            yield found
            continue
        done[folder] = manifest.fingerprint
        if manifest.fingerprint != entry["fingerprint"]:
            found.problems.append(_mismatch(label, folder, entry["fingerprint"], manifest.fingerprint))
        yield found
        waiting += [(f"{name} of {label}", folder, item, False) for name, item in manifest.inputs.items()]


def is_release(path: str | Path) -> bool:
    """Whether `path` names a release (its file or its folder) and not a configuration."""
    path = Path(path)
    if path.name == RELEASE_NAME or (path / RELEASE_NAME).is_file():
        return True
    if path.suffix != ".json" or not path.is_file():
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"format", "fingerprint", "splits", "database"} <= content.keys()


def release_file(path: str | Path) -> Path:
    """The release file that `path` or the folder `path` is."""
    path = Path(path)
    return path / RELEASE_NAME if path.is_dir() else path


def _check_step(
    name: str, stage: Stage, folder: Path, sampling: Sampling, progress: bool, wrong: list[Path]
) -> Checked:
    """wrong: inputs with problems of their own; what was made from them would not come out the same again."""
    found = _check_folder(name, folder, sampling, _REMAKE, progress)
    if wrong:
        found.notes.append(f"{folder}: not made again, because of the problems of {wrong[0].name}")
    try:
        manifest = read_manifest(folder, stage.kind)
        if manifest.fingerprint != stage.fingerprint():
            found.problems.append(_mismatch(name, folder, stage.fingerprint(), manifest.fingerprint))
            return found
        if wrong:
            return found
        total = len(chosen_shards(manifest, sampling)) + (sampling.fraction >= 1)
        meter = Meter(f"{name}: made again", total, "shards", progress)
        try:
            check_again(found, stage, manifest, sampling, _REMAKE, meter.advance)
        finally:
            meter.close()
    except RetroError as error:
        if str(error) not in found.problems:
            found.problems.append(str(error))
    except OSError as error:
        found.problems.append(f"{folder}: could not be made again ({error}); free the cause (TMPDIR says where)")
    except Exception as error:  # whatever a stage raises about an edited manifest must not end the check of the others
        found.problems.append(f"{folder}: could not be made again ({type(error).__name__}: {error}); {_REMAKE}")
    return found


def _check_folder(
    name: str, folder: Path, sampling: Sampling, remedy: str, progress: bool, inputs_required: bool = True
) -> Checked:
    found = Checked(name, folder)
    try:
        total = bytes_to_read(read_manifest(folder), sampling)
    except RetroError:
        total = 0  # check_files says what is wrong
    meter = Meter(f"{name}: checksums", total, "B", progress)
    try:
        check_files(found, sampling, remedy, meter.advance, inputs_required)
    finally:
        meter.close()
    return found


def _made_from(root: Path, folders: list[Path]) -> list[Path]:
    """Artifact folders below `root` that have one of `folders` among their ancestors, by name."""
    known = {folder.resolve() for folder in folders}
    others: dict[Path, set[Path]] = {}
    for folder in sorted(root.iterdir() if root.is_dir() else ()):
        try:
            manifest = read_manifest(folder)
        except (RetroError, OSError):
            continue
        if folder.resolve() not in known:
            others[folder] = {Path(os.path.normpath(folder.resolve() / i["path"])) for i in manifest.inputs.values()}
    found: list[Path] = []
    while fresh := [folder for folder, inputs in others.items() if folder not in found and inputs & known]:
        found += fresh
        known |= {folder.resolve() for folder in fresh}
    return sorted(found)


def _read_release(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ArtifactMissingError(f"{path}: release not found; give its file or the folder that holds {RELEASE_NAME}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(content["fingerprint"], str) and _members(content)):
            raise ValueError("no members")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactCorruptError(
            f"{path}: not a readable release ({type(error).__name__}: {error}); {_RESTORE}"
        ) from None
    return dict(content)


def _members(value: Any, label: str = "") -> list[tuple[str, dict[str, str]]]:
    """(dotted name, {kind, fingerprint, path}) of every member in a release's content."""
    if not isinstance(value, dict):
        return []
    if {"kind", "fingerprint", "path"} <= value.keys():
        return [(label, {key: str(value[key]) for key in ("kind", "fingerprint", "path")})]
    return [m for key, item in value.items() for m in _members(item, f"{label}.{key}" if label else str(key))]


def _mismatch(label: str, folder: Path, expected: str, found: str) -> str:
    return f"{folder}: {label}: expected the artifact {expected}, found {found}; {_RESTORE}"
