"""A Hugging Face folder as our decoder: configuration, and weights tensor by tensor."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from retro.config.errors import ArtifactError, ArtifactMismatchError, ConfigError
from retro.config.model import ModelConfig
from retro.model.huggingface.architecture import Architecture
from retro.model.huggingface.gpt2 import GPT2
from retro.model.huggingface.gpt_neox import GPT_NEOX
from retro.model.huggingface.llama import LLAMA
from retro.model.huggingface.mapping import Entry, same
from retro.model.huggingface.settings import CONFIG_NAME, Settings, read_config_json
from retro.model.huggingface.weight_files import WeightFiles
from retro.model.retro import RetroModel, is_retrieval_parameter
from retro.model.shards import fill_parameter, row_orders
from retro.model.weights import check_finite, outline

ARCHITECTURES = {entry.model_type: entry for entry in (GPT2, LLAMA, GPT_NEOX)}


def is_huggingface_folder(folder: str | Path) -> bool:
    """Whether `folder` holds a config.json of transformers (and not one of this project)."""
    try:
        return "model_type" in read_config_json(Path(folder))
    except ArtifactError:
        return False


def read_huggingface_config(folder: str | Path) -> ModelConfig:
    """The decoder that the folder's config.json describes, without retrieval.

    Raises ArtifactMissingError, ArtifactCorruptError, or ArtifactMismatchError naming a model type or a setting that
    is not supported.
    """
    return _open_config(Path(folder))[1]


def load_huggingface(folder: str | Path, device: str | torch.device = "cpu") -> RetroModel:
    """The folder's model, a plain GPT in float32 and evaluation mode; errors as in `fill_backbone`."""
    check_weights(folder)
    with torch.device("meta"):
        model = RetroModel(read_huggingface_config(folder))
    model.to_empty(device=device)
    fill_backbone(model, folder)
    return model.eval()


def check_weights(folder: str | Path) -> None:
    """Compare names, shapes and types of the folder's tensors with its config.json; reads no tensor and makes no model.

    Raises as `fill_backbone`: what config.json says is not believed until the files bear it out.
    """
    folder = Path(folder)
    architecture, config = _open_config(folder)
    with WeightFiles(folder) as files:
        model = outline(config, str(folder / CONFIG_NAME), len(files.names))
        _checked_entries(folder, architecture, config, files, model)


@torch.no_grad()
def fill_backbone(model: RetroModel, folder: str | Path) -> None:
    """Copy the folder's weights into the decoder of `model`, whose retrieval parameters stay as they are.

    Nothing is copied unless all of it fits. Memory: one tensor at a time besides the model; of a parameter that is
    spread over processes each fills its own part. Raises as `read_huggingface_config`, and ArtifactCorruptError
    (truncated files, numbers that are not finite) or ArtifactMismatchError (a tensor missing, unknown, or of another
    shape; another model).
    """
    folder = Path(folder)
    architecture, config = _open_config(folder)
    with WeightFiles(folder) as files:
        entries, names = _checked_entries(folder, architecture, config, files, model)
        state, orders = model.state_dict(), row_orders(model)
        for entry in entries:
            whole = entry.join([files.read(names[name]) for name in entry.theirs])
            check_finite(folder, entry.ours, whole)
            fill_parameter(state[entry.ours], whole, orders.get(entry.ours))


def _checked_entries(
    folder: Path, architecture: Architecture, config: ModelConfig, files: WeightFiles, model: RetroModel
) -> tuple[list[Entry], dict[str, str]]:
    """The tables of all weights of the decoder of `model`, and name without prefix -> name in the files."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not is_retrieval_parameter(name)}
    names = _strip_prefix(files, architecture)
    entries = architecture.entries(config) + _head(architecture, config, files, names)
    if {entry.ours for entry in entries} != set(state):
        raise ArtifactMismatchError(f"{folder}: the weights of another decoder than this model's")
    _check(folder, architecture, files, names, entries, {n: tuple(t.shape) for n, t in state.items()})
    return entries, names


def _open_config(folder: Path) -> tuple[Architecture, ModelConfig]:
    path = folder / CONFIG_NAME
    settings = read_config_json(folder)
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise ArtifactMismatchError(f"{path}: model_type: expected one of {', '.join(ARCHITECTURES)}, found {kind!r}")
    architecture = ARCHITECTURES[kind]
    try:
        return architecture, architecture.read(Settings(settings, str(path)))
    except ConfigError as error:
        raise ArtifactMismatchError(f"{path}: describes no model that can be built: {error}") from None


def _strip_prefix(files: WeightFiles, architecture: Architecture) -> dict[str, str]:
    """Name without prefix -> name in the files; buffers left out."""
    buffers = re.compile("|".join(architecture.buffers))
    stripped: dict[str, str] = {}
    for name in sorted(files.names):
        short = name.removeprefix(architecture.prefix)
        if buffers.fullmatch(short):
            continue
        if short in stripped:
            raise ArtifactMismatchError(
                f"{files.folder}: holds both {stripped[short]} and {name}, which name the same weight; get the folder "
                "again"
            )
        stripped[short] = name
    return stripped


def _head(architecture: Architecture, config: ModelConfig, files: WeightFiles, names: dict[str, str]) -> list[Entry]:
    """The entry of the vocabulary projection, which a tied model may store too."""
    stored = next((name for name in architecture.head_names if name in names), architecture.head_names[0])
    if not config.tie_embeddings:
        return [same("head.weight", stored)]
    if stored in names:
        embedding = architecture.entries(config)[0].theirs[0]
        if embedding in names and not torch.equal(files.read(names[stored]), files.read(names[embedding])):
            raise ArtifactMismatchError(
                f"{files.folder / CONFIG_NAME}: tie_word_embeddings is true, but {names[stored]} and "
                f"{names[embedding]} hold different numbers; set it to false in a copy of the folder"
            )
        del names[stored]
    return []


def _check(
    folder: Path,
    architecture: Architecture,
    files: WeightFiles,
    names: dict[str, str],
    entries: list[Entry],
    shapes: dict[str, tuple[int, ...]],
) -> None:
    """Every tensor there, none left over, all of the shapes that the configuration asks for."""
    wanted = {
        name: shape
        for entry in entries
        for name, shape in zip(entry.theirs, entry.their_shapes(shapes[entry.ours]), strict=True)
    }
    for label, found in (("missing", wanted.keys() - names.keys()), ("unexpected", names.keys() - wanted.keys())):
        if found:
            shown = ", ".join(sorted(found)[:3]) + (", ..." if len(found) > 3 else "")
            raise ArtifactMismatchError(
                f"{folder}: not the weights of a {architecture.class_name} of this {CONFIG_NAME}: {len(found)} "
                f"{label} ({shown}); get the folder again"
            )
    for name, shape in wanted.items():
        if files.shape(names[name]) != shape:
            raise ArtifactMismatchError(
                f"{folder}: {names[name]}: expected shape {list(shape)} by {CONFIG_NAME}, found "
                f"{list(files.shape(names[name]))}; get the folder again"
            )
        files.check_float(names[name])
