"""`retro prep explain`: which field or input made one folder differ from another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep.inspection.lineage import Made, causes, made_by_folder, made_by_stage
from data_prep.inspection.status import status_of
from data_prep.pipeline import iter_folders, steps
from retro.artifacts.manifest import MANIFEST_NAME
from retro.config.errors import ArtifactError, ArtifactMissingError, RetroError
from retro.config.preparation import PrepConfig


def explain(config: PrepConfig) -> Iterator[str]:
    """Per step: its folder, and where it is not made yet, why every other folder of the stage is not the one."""
    planned = list(iter_folders(config))
    own = {folder for _, _, folder in planned}
    for step, stage, folder in planned:
        state = status_of(step, stage, folder).state
        yield f"{step.name}: {folder.name} ({state})"
        if state not in ("missing", "resumable"):
            continue
        here = made_by_stage(stage)
        for other in sorted(Path(config.root).glob(f"{stage.name}-*")):
            if other in own or not (other / MANIFEST_NAME).is_file():
                continue
            try:
                yield from (f"  {line}" for line in _differs(here, made_by_folder(other)))
            except RetroError as error:
                yield f"  not {other.name}: it cannot be opened ({error})"
    if len(planned) < len(steps(config)):
        names = ", ".join(step.name for step in steps(config)[len(planned) :])
        yield f"waiting for their inputs: {names}"


def explain_folders(folder: str | Path, against: str | Path, root: str | Path | None = None) -> Iterator[str]:
    """Why two artifact folders differ, down to the fields or the corpus at the root of it.

    A name that is no path from here is looked for below `root`. Raises ArtifactError for what is not an artifact.
    """
    one, other = (made_by_folder(_find(name, root)) for name in (folder, against))
    if one.fingerprint == other.fingerprint:
        yield f"{one.label} and {other.label} are the same artifact: stage, version, fields and inputs are equal"
        return
    yield from _differs(one, other)


def _differs(one: Made, other: Made) -> Iterator[str]:
    found = causes(one, other)
    yield f"{one.label} differs from {other.label} (values: of the first / of the second):"
    for cause in found:
        yield f"  {cause}"


def _find(name: str | Path, root: str | Path | None) -> Path:
    path = Path(name)
    if path.is_dir():
        return path
    if root is not None and (Path(root) / path).is_dir():
        return Path(root) / path
    places = f"{path}" + (f" or {Path(root) / path}" if root is not None else "")
    error: ArtifactError = ArtifactMissingError(f"{places}: artifact folder not found; correct the name")
    raise error
