"""What a checkpoint is and holds, and whether it is whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retro.artifacts.checkpoint_folders import (
    CHECKPOINT_KIND,
    MODEL,
    OPTIMIZER,
    RNG_NAME,
    STATE_NAME,
    checkpoint_step,
    has_tensors,
    is_saved_model,
)
from retro.artifacts.manifest import Manifest, read_manifest
from retro.config.errors import ArtifactCorruptError, ArtifactError, ArtifactMismatchError
from retro.model.tensor_bytes import content_sha256
from retro.model.tensor_files import TensorFiles, open_tensor_files
from retro.model.tensor_header import parse_object, read_header
from retro.model.weights import check_weights, read_model_config
from retro.train.plan.parameters import count_parts, list_parameters
from retro.train.stored.checking import find_problems

_CONFIG = "config.json"


@dataclass(frozen=True)
class TensorSet:
    """stem: its name; form: "one file" or "pieces"; tensors: how many; bytes: of their content; dtypes: tensors by
    dtype; files: {"name", "bytes"}, the index too."""

    stem: str
    form: str
    tensors: int
    bytes: int
    dtypes: dict[str, int]
    files: list[dict[str, Any]]


@dataclass
class Description:
    """A finished checkpoint. What could not be read is None or empty, and a line of `problems`.

    state: of state.json (step, samples, tokens, elapsed_s in seconds, ...); release, tokenizer, init_from:
    fingerprints; weights: fingerprint, None if it is not recorded and nothing was verified; parameters: by part;
    writers: processes that wrote tensors; data_processes: that each had a generator of its own, one per share of the
    data; callbacks: their states by name; bytes: of all files; verified: checksums were compared.
    """

    folder: Path
    step: int | None
    bytes: int
    verified: bool
    release: str | None = None
    tokenizer: str | None = None
    init_from: str | None = None
    weights: str | None = None
    state: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    sets: list[TensorSet] = field(default_factory=list)
    writers: int | None = None
    data_processes: int | None = None
    callbacks: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        out = {name: value for name, value in vars(self).items() if name != "sets"}
        return {**out, "folder": str(self.folder), "sets": [vars(tensors) for tensors in self.sets]}


def describe_checkpoint(
    folder: Path, verify: bool = False, advance: Callable[[int], None] = lambda count: None
) -> Description:
    """Read all that is small, with `verify` every byte (advance: called with the number of those read).

    Raises ArtifactError subclasses where there is no manifest, or one that cannot be read or is of something else;
    what is wrong besides is in the description.
    """
    if is_saved_model(folder) and has_tensors(folder, MODEL):
        raise ArtifactMismatchError(
            f"{folder}: expected a run or one of its checkpoints, found a model by itself; its config.json says what "
            "it is"
        )
    manifest = read_manifest(folder, CHECKPOINT_KIND)
    out = Description(
        folder=folder,
        step=_step(folder, manifest),
        bytes=sum(int(entry["bytes"]) for entry in manifest.all_files()),
        verified=verify,
        release=_text(manifest.config.get("release")),
        tokenizer=_text(manifest.config.get("tokenizer")),
        init_from=_text(manifest.config.get("init_from")),
    )
    out.problems += find_problems(folder, manifest, verify, advance)
    for read in (_read_state, _read_generators, _read_model, _read_sets):
        try:
            read(out, manifest)
        except ArtifactError as error:
            if not any(line.split(": ")[0] in str(error) for line in out.problems):  # said already
                out.problems.append(str(error))
    return out


def _step(folder: Path, manifest: Manifest) -> int | None:
    step = manifest.stats.get("step") if isinstance(manifest.stats, dict) else None
    return step if type(step) is int else checkpoint_step(folder.name)


def _read_state(out: Description, manifest: Manifest) -> None:
    stored = _read_object(out.folder / STATE_NAME)
    state, callbacks = stored.get("state"), stored.get("callbacks")
    if not isinstance(state, dict) or not isinstance(callbacks, dict):
        raise ArtifactCorruptError(f"{out.folder / STATE_NAME}: expected the entries state and callbacks; {_REMEDY}")
    out.state, out.callbacks = state, callbacks
    if state.get("step") != out.step:
        raise ArtifactCorruptError(
            f"{out.folder / STATE_NAME}: expected step {out.step} as in the manifest, found {state.get('step')}; "
            f"{_REMEDY}"
        )


def _read_generators(out: Description, manifest: Manifest) -> None:
    header = read_header(out.folder / RNG_NAME)
    if "cpu" not in header or len(header["cpu"].shape) != 2:
        raise ArtifactCorruptError(
            f"{out.folder / RNG_NAME}: expected generator states 'cpu', [processes, n]; {_REMEDY}"
        )
    out.data_processes = header["cpu"].shape[0]


def _read_model(out: Description, manifest: Manifest) -> None:
    config = read_model_config(out.folder)
    check_weights(out.folder, config)
    out.parameters = count_parts(list_parameters(config))


def _read_sets(out: Description, manifest: Manifest) -> None:
    recorded = {entry["name"]: str(entry["sha256"]) for entry in manifest.all_files()}
    writers: set[str] = set()
    for stem in (MODEL, OPTIMIZER):
        files = open_tensor_files(out.folder, stem)
        strangers = sorted(path.name for path in files.all_paths if path.name not in recorded)
        if strangers:
            raise ArtifactCorruptError(f"{out.folder / strangers[0]}: not recorded in the manifest; {_REMEDY}")
        out.sets.append(_describe_set(files))
        writers |= {"0" if files.index is None else path.stem.removeprefix(f"{stem}-") for path in files.files}
        if stem == MODEL and files.index is None:
            out.weights = recorded[files.files[0].name][:16]
        elif stem == MODEL and out.verified:
            out.weights = content_sha256(files)[:16]
    out.writers = len(writers)


def _describe_set(files: TensorFiles) -> TensorSet:
    dtypes: dict[str, int] = {}
    for name in files.names:
        dtype = str(files.dtype(name)).removeprefix("torch.")
        dtypes[dtype] = dtypes.get(dtype, 0) + 1
    return TensorSet(
        stem=files.stem,
        form="one file" if files.index is None else "pieces",
        tensors=len(files.names),
        bytes=sum(files.num_bytes(name) for name in files.names),
        dtypes=dtypes,
        files=[{"name": path.name, "bytes": path.stat().st_size} for path in files.all_paths],
    )


_REMEDY = "use another checkpoint"


def _read_object(path: Path) -> dict[str, Any]:
    def error(problem: str) -> ArtifactCorruptError:
        return ArtifactCorruptError(f"{path}: {problem}; {_REMEDY}")

    try:
        text = path.read_bytes()
    except OSError as problem:
        raise error(problem.strerror or str(problem)) from None
    json_object: dict[str, Any] = parse_object(text, error)
    return json_object


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None if value is None else json.dumps(value)
