"""Weights to start from: those of another run's checkpoint (`init_from`)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from retro.artifacts.fingerprint import sha256_file
from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ArtifactMissingError, ConfigError
from retro.config.model import ModelConfig
from retro.config.train import TrainConfig
from retro.data.tokenizer import Tokenizer
from retro.model.retro import RetroModel
from retro.model.weights import CONFIG_NAME, WEIGHTS_NAME, load_weights, read_model_config
from retro.train.checkpoint import CHECKPOINT_KIND, latest_checkpoint


@dataclass(frozen=True)
class InitialWeights:
    """folder: of the checkpoint; model: its configuration; fingerprint: 16 digits of the weights' SHA-256."""

    folder: Path
    model: ModelConfig
    fingerprint: str

    def load(self, model: RetroModel) -> None:
        """Fill `model`."""
        load_weights(self.folder / WEIGHTS_NAME, model)


def open_initial_weights(path: str | Path, tokenizer: Tokenizer) -> InitialWeights:
    """The weights of a run folder (its newest checkpoint) or of a checkpoint folder.

    Raises ArtifactMissingError, ArtifactCorruptError (checksums are compared) or ArtifactMismatchError (another
    tokenizer).
    """
    path = Path(path)
    if not path.is_dir():
        raise ArtifactMissingError(f"init_from: {path}: no such run or checkpoint; train it first, or correct the path")
    folder: Path | None = path
    if (path / "checkpoints").is_dir():
        folder = latest_checkpoint(path / "checkpoints")
        if folder is None:
            raise ArtifactMissingError(f"init_from: {path}/checkpoints: no finished checkpoint; train that run first")
    assert folder is not None
    recorded = {entry["name"]: entry["sha256"] for entry in open_manifest(folder, CHECKPOINT_KIND).all_files()}
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        found = sha256_file(folder / name) if name in recorded else "no record of it"
        if recorded.get(name) != found:
            raise ArtifactCorruptError(
                f"{folder / name}: expected sha256 {recorded.get(name, 'in the manifest')[:16]}, found {found[:16]}; "
                "use another checkpoint"
            )
    model = read_model_config(folder)
    try:
        stored = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))["tokenizer"]["fingerprint"]
    except (KeyError, TypeError):
        raise ArtifactCorruptError(f"{folder / CONFIG_NAME}: names no tokenizer; use another checkpoint") from None
    if stored != tokenizer.fingerprint:
        raise ArtifactMismatchError(
            f"init_from: {folder}: expected the release's tokenizer {tokenizer.fingerprint}, found {stored}; use the "
            "release that it was trained with"
        )
    return InitialWeights(folder, model, recorded[WEIGHTS_NAME][:16])


def take_model(config: TrainConfig, initial: InitialWeights) -> TrainConfig:
    """The configuration with the model of the weights. Raises ConfigError if it describes another one."""
    if config.model not in (ModelConfig(), initial.model, dataclasses.replace(initial.model, vocab_size=None)):
        raise ConfigError(
            f"model: with init_from the model is that of {initial.folder}, but this configuration describes another; "
            "leave the section model out"
        )
    return dataclasses.replace(config, model=initial.model)
