"""Open a run folder or a checkpoint folder for inference: weights, and what they were trained with and on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retro.artifacts.checkpoint_folders import (
    CHECKPOINTS,
    MODEL,
    checkpoint_step,
    compare_checksums,
    find_checkpoint,
    has_tensors,
    is_saved_model,
)
from retro.artifacts.manifest import MANIFEST_NAME, open_manifest
from retro.config.errors import (
    ArtifactCorruptError,
    ArtifactMismatchError,
    ArtifactMissingError,
    ArtifactUnfinishedError,
    ConfigError,
)

if TYPE_CHECKING:
    from retro.model import RetroModel

_CONFIG, _RUN_CONFIG, _RELEASE = "config.json", "config.yaml", "release.json"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint, or an exported whole model.

    folder: of the checkpoint; run: the run folder it lies in, None if it lies alone; step; fingerprint: 16 digits of
    the SHA-256 of the weights as one file, whatever files they are in; stored: content of config.json; settings:
    content of the run's config.yaml ({} if alone).
    """

    folder: Path
    run: Path | None
    step: int
    fingerprint: str
    stored: dict[str, Any]
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """For people: run and step."""
        return f"{self.run.name} step {self.step}" if self.run else self.folder.name

    def load_model(self, device: str = "cpu") -> RetroModel:
        """The model in evaluation mode. Raises ArtifactError subclasses; the weights' checksum is compared."""
        from retro.model.tensor_files import open_tensor_files
        from retro.model.weights import load_model, weights_fingerprint

        files = open_tensor_files(self.folder, MODEL)
        if files.index is not None:
            compare_checksums(self.folder, open_manifest(self.folder), [path.name for path in files.all_paths])
        else:
            found = weights_fingerprint(self.folder)[:16]
            if found != self.fingerprint:
                raise ArtifactCorruptError(
                    f"{files.files[0]}: expected sha256 {self.fingerprint}, found {found}; use another checkpoint"
                )
        return load_model(self.folder, device)

    @property
    def isolates_documents(self) -> bool:
        """Whether no document saw another one of its sequence in training; False where nothing tells."""
        return self.stored.get("packing", self.settings.get("packing")) == "documents"

    @property
    def trained_on(self) -> dict[str, Any]:
        """What its run was (retro.train.checkpointing.identity): "config", and fingerprints, of which "release" and
        "questions". {} where the weights lie alone."""
        return dict(open_manifest(self.folder).config) if (self.folder / MANIFEST_NAME).is_file() else {}

    def setting(self, name: str, given: int | None) -> int:
        """`given`, or the value of that name that the run was trained with. Raises ConfigError if neither is known."""
        if given is not None:
            return given
        value = self.stored.get(name, self.settings.get(name))
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{name}: {self.folder} does not tell what it was trained with; give {name}=NUMBER")
        return value

    def release_path(self, given: str | None) -> Path:
        """The release to use: the one given, or the run's. Raises ConfigError if there is none."""
        if given is not None:
            return Path(given)
        if self.run is not None and (self.run / _RELEASE).is_file():
            return self.run / _RELEASE
        raise ConfigError(f"release: {self.folder} is not in a run folder with a {_RELEASE}; give release=PATH")

    def check_tokenizer(self, fingerprint: str, where: str) -> None:
        """Raise ArtifactMismatchError unless the model was trained with the tokenizer of this fingerprint."""
        expected = self.stored.get("tokenizer")
        if isinstance(expected, dict):
            expected = expected.get("fingerprint")
        if expected is not None and expected != fingerprint:
            raise ArtifactMismatchError(
                f"{where}: expected the tokenizer {expected} that {self.folder} was trained with, found {fingerprint}; "
                "use the release of that run"
            )


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open `path`: a run folder (its newest finished checkpoint), one checkpoint's folder or `checkpoints/best`, or an
    exported whole model (`retro export format=retro`), which has no manifest to be compared with.

    Raises ArtifactMissingError, ArtifactUnfinishedError or ArtifactCorruptError.
    """
    path = Path(path)
    if not path.is_dir():
        raise ArtifactMissingError(f"{path}: no such run or checkpoint; `retro train` makes one, or correct the path")
    folder = find_checkpoint(path)
    if folder is None:
        has_any = any((path / CHECKPOINTS).glob("step_*/"))
        error = ArtifactUnfinishedError if has_any else ArtifactMissingError
        raise error(f"{path}/{CHECKPOINTS}: no finished checkpoint; train the run until it has saved one")
    if folder == path and not has_tensors(path, MODEL) and not (path / MANIFEST_NAME).is_file():
        raise ArtifactMissingError(
            f"{path}: neither a run folder with {CHECKPOINTS}/ nor a checkpoint with {MODEL}.safetensors or "
            f"{MODEL}.index.json; correct the path"
        )
    run = _run_of(folder)
    fingerprint = _fingerprint(folder)
    stored = _read_json(folder / _CONFIG)
    if "model_type" in stored:
        raise ArtifactMismatchError(
            f"{folder}: expected a model of this project, found a Hugging Face folder; train on from it with "
            "retrofit.base (docs/pretrained.md)"
        )
    return Checkpoint(
        folder=folder,
        run=run,
        step=checkpoint_step(folder.name) or 0,
        fingerprint=fingerprint[:16],
        stored=stored,
        settings=_read_yaml(run / _RUN_CONFIG) if run else {},
    )


def _fingerprint(folder: Path) -> str:
    """SHA-256 of the weights: as the manifest records it if they are one file, else over their content."""
    if is_saved_model(folder):
        return _content_fingerprint(folder)
    recorded = {entry["name"]: str(entry["sha256"]) for entry in open_manifest(folder).all_files()}
    known = [name for name in (f"{MODEL}.safetensors", f"{MODEL}.index.json") if name in recorded]
    if len(known) != 1:
        raise ArtifactCorruptError(
            f"{folder}/{MANIFEST_NAME}: expected a record of {MODEL}.safetensors or {MODEL}.index.json, found "
            f"{' and '.join(known) or 'none'}; use another checkpoint"
        )
    return recorded[known[0]] if known[0].endswith(".safetensors") else _content_fingerprint(folder)


def _content_fingerprint(folder: Path) -> str:
    from retro.model.weights import weights_fingerprint

    return weights_fingerprint(folder)


def _run_of(folder: Path) -> Path | None:
    if folder.parent.name != CHECKPOINTS:
        folder = folder.resolve()
    run = folder.parent.parent if folder.parent.name == CHECKPOINTS else None
    return run if run is not None and (run / _RUN_CONFIG).is_file() else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactCorruptError(f"{path}: missing; use another checkpoint") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactCorruptError(f"{path}: not readable as JSON ({error}); use another checkpoint") from None
    if not isinstance(value, dict):
        raise ArtifactCorruptError(f"{path}: expected an object, found {type(value).__name__}")
    return value


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ArtifactCorruptError(f"{path}: not readable as YAML ({str(error).splitlines()[0]})") from None
    return value if isinstance(value, dict) else {}
