"""Models by a path: runs, checkpoints, saved folders, and Hugging Face folders alike.

model = load_pretrained("runs/demo-retro")
save_pretrained(model, "models/demo-retro")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retro.artifacts.checkpoint_folders import (
    CHECKPOINT_KIND,
    CHECKPOINTS,
    compare_checksums,
    find_checkpoint,
    is_saved_model,
)
from retro.artifacts.manifest import open_manifest
from retro.artifacts.new_folder import new_folder
from retro.config.errors import ArtifactMissingError
from retro.config.model import ModelConfig
from retro.model.huggingface import check_weights as check_huggingface_weights
from retro.model.huggingface import fill_backbone, is_huggingface_folder, read_huggingface_config
from retro.model.huggingface.weight_files import fingerprint_weights
from retro.model.retro import RetroModel
from retro.model.tensor_files import open_tensor_files
from retro.model.weights import (
    CONFIG_NAME,
    WEIGHTS_STEM,
    check_weights,
    load_backbone_weights,
    load_weights,
    read_model_config,
    save_model,
    weights_fingerprint,
)


@dataclass(frozen=True)
class Pretrained:
    """A model on disk that was found and whose configuration was read.

    folder: that holds config.json and weights; is_huggingface: a folder of transformers; config: of the model.
    """

    folder: Path
    is_huggingface: bool
    config: ModelConfig

    def check(self) -> None:
        """Compare the configuration with the names and shapes of the weights, and the files of both with the checksums
        that a checkpoint's manifest records; a folder of `save_pretrained` has none.

        Raises ArtifactCorruptError, ArtifactMismatchError for weights of another model, or ArtifactUnfinishedError for
        a checkpoint without its manifest."""
        if self.is_huggingface:
            check_huggingface_weights(self.folder)
            return
        if not is_saved_model(self.folder):
            manifest = open_manifest(self.folder, CHECKPOINT_KIND)
            names = [path.name for path in open_tensor_files(self.folder, WEIGHTS_STEM).all_paths]
            compare_checksums(self.folder, manifest, [*names, CONFIG_NAME])
        check_weights(self.folder, self.config)

    def fingerprint(self) -> str:
        """16 digits over the weights' content, however it is cut into files."""
        if self.is_huggingface:
            return fingerprint_weights(self.folder)
        return weights_fingerprint(self.folder)[:16]

    def fill(self, model: RetroModel) -> None:
        """Load all weights into a model of the same configuration.

        Raises ArtifactError subclasses; ArtifactCorruptError for a weight that is not finite too."""
        if self.is_huggingface:
            fill_backbone(model, self.folder)
        else:
            load_weights(self.folder, model, finite=True)

    def fill_backbone(self, model: RetroModel) -> None:
        """Load the decoder's weights into a model of the same decoder; its retrieval parameters stay. Errors as in
        `fill`."""
        if self.is_huggingface:
            fill_backbone(model, self.folder)
        else:
            load_backbone_weights(self.folder, model, finite=True)


def open_pretrained(path: str | Path, name: str = "model") -> Pretrained:
    """Find the model at `path`: a run folder (its newest finished checkpoint), a checkpoint folder or
    `checkpoints/best`, a folder of `save_pretrained`, or a Hugging Face folder.

    name: what error messages call the path. Raises ArtifactMissingError where there is none, and ArtifactError
    subclasses for a config.json that is broken or not supported.
    """
    path = Path(path)
    if not path.is_dir():
        raise ArtifactMissingError(f"{name}: {path}: no such run, checkpoint or model; correct the path")
    folder = find_checkpoint(path)
    if folder is None:
        raise ArtifactMissingError(f"{name}: {path}/{CHECKPOINTS}: no finished checkpoint; train that run first")
    if is_huggingface_folder(folder):
        return Pretrained(folder, True, read_huggingface_config(folder))
    return Pretrained(folder, False, read_model_config(folder))


def load_pretrained(path: str | Path, device: str | torch.device = "cpu") -> RetroModel:
    """The whole model at `path` (see `open_pretrained`) in float32 and evaluation mode, on `device`.

    Raises ArtifactError subclasses, each one line; checksums are compared where a manifest records them.
    """
    found = open_pretrained(path)
    found.check()
    with torch.device("meta"):
        model = RetroModel(found.config)
    model.to_empty(device=device)
    found.fill(model)
    return model.eval()


def save_pretrained(model: RetroModel, folder: str | Path, extra: Mapping[str, Any] | None = None) -> None:
    """Write the whole model, retrieval included, into the new folder `folder`: model.safetensors and config.json.

    extra: further entries of config.json. Whole or not at all. Raises ConfigError if the folder exists.
    """
    with new_folder(folder) as temporary:
        save_model(temporary, model, extra)
