"""Models on disk: the tensor set `model` (weights, one file or several) and `config.json` (configuration).

Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from retro.artifacts.atomic import atomic_path, write_json_atomic
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ArtifactMissingError, ConfigError
from retro.config.loader import from_dict, to_dict
from retro.config.model import ModelConfig
from retro.model.retro import RetroModel, is_retrieval_parameter
from retro.model.shards import fill_parameter, row_orders
from retro.model.tensor_bytes import content_sha256
from retro.model.tensor_files import TensorFiles, open_tensor_files

WEIGHTS_STEM = "model"
WEIGHTS_NAME = f"{WEIGHTS_STEM}.safetensors"
CONFIG_NAME = "config.json"


def save_model(folder: str | Path, model: RetroModel, extra: Mapping[str, Any] | None = None) -> None:
    """Write `model.safetensors` and `config.json` ({"model": configuration, **extra}) into `folder`, each atomically.

    extra: further JSON-able entries (the fingerprint of the tokenizer, say). The folder is made if need be.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if extra and "model" in extra:
        raise ValueError("extra: the entry 'model' is taken by the model's configuration")
    save_weights(folder / WEIGHTS_NAME, model)
    write_json_atomic(folder / CONFIG_NAME, {"model": to_dict(model.config), **(extra or {})})


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> RetroModel:
    """The model that `save_model` or a training run wrote, in evaluation mode, on `device`.

    Raises ArtifactMissingError, ArtifactCorruptError (not readable) or ArtifactMismatchError (weights of another
    model).
    """
    folder = Path(folder)
    config = read_model_config(folder)
    check_weights(folder, config)
    with torch.device("meta"):
        model = RetroModel(config)
    model.to_empty(device=device)
    load_weights(folder, model)
    return model.eval()


def outline(config: ModelConfig, source: str, num_tensors: int) -> RetroModel:
    """The model without memory (on the meta device), of a configuration that may be damaged or hostile.

    source: the file that it was read from; num_tensors: that its weights have. Raises ArtifactMismatchError for more
    layers than tensors, or tensors that cannot be.
    """
    if config.num_layers > num_tensors:
        raise ArtifactMismatchError(
            f"{source}: describes {config.num_layers} layers, but the weights have {num_tensors} tensors in all; use "
            "the files of one model"
        )
    try:
        with torch.device("meta"):
            return RetroModel(config)
    except (RuntimeError, TypeError, OverflowError):  # torch, where a size does not fit into 64 bits
        raise ArtifactMismatchError(
            f"{source}: describes no model that can be built: its tensors are too large; use the files of one model"
        ) from None


def check_weights(folder: str | Path, config: ModelConfig) -> None:
    """Compare names and shapes of the weights in `folder` with those of the model of `config`; reads no tensor and
    makes no model. Errors as in `load_weights`."""
    files = open_tensor_files(folder, WEIGHTS_STEM)
    model = outline(config, str(files.folder / CONFIG_NAME), len(files.names))
    _compare(files, model.state_dict(), "weights of another model")


def read_model_config(folder: str | Path) -> ModelConfig:
    """The configuration stored in `folder/config.json`; errors as in `load_model`."""
    path = Path(folder) / CONFIG_NAME
    if not path.is_file():
        raise ArtifactMissingError(f"{path}: not found; expected a folder with {CONFIG_NAME} and {WEIGHTS_NAME}")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ArtifactCorruptError(f"{path}: not readable as JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(stored, dict) or "model" not in stored:
        raise ArtifactCorruptError(f"{path}: has no entry 'model' with a model configuration")
    try:
        return from_dict(ModelConfig, stored["model"], source=str(path))
    except ConfigError as error:
        raise ArtifactCorruptError(
            f"{error} (the stored configuration was altered or made by another version)"
        ) from None


def save_weights(path: str | Path, model: nn.Module) -> None:
    """Write all parameters and buffers to one safetensors file, whole or not at all."""
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})


def load_weights(folder: str | Path, model: nn.Module, finite: bool = False) -> None:
    """Fill `model` from the weights in `folder`, in one file or several; keys and shapes must be exactly the model's.
    Dtypes are converted. Of a parameter that is spread over processes each fills its own part.

    finite: refuse numbers that are not. Memory: one tensor at a time besides the model. Raises ArtifactMissingError,
    ArtifactCorruptError or ArtifactMismatchError, each one line and the same in all processes; the model is then as it
    was, unless it is for a number that is not finite.
    """
    _fill(Path(folder), model, model.state_dict(), "weights of another model", finite)


def load_backbone_weights(folder: str | Path, model: nn.Module, finite: bool = False) -> None:
    """As `load_weights` from a model without retrieval of the same decoder; retrieval parameters stay as they are."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not is_retrieval_parameter(name)}
    _fill(Path(folder), model, state, "weights of another decoder", finite)


def check_finite(folder: Path, name: str, tensor: Tensor) -> None:
    """Raise ArtifactCorruptError unless all numbers of the weight are finite."""
    # The sum of finite numbers is finite in float64: one pass, and no tensor of truth values.
    if not tensor.sum(dtype=torch.float64).isfinite():
        raise ArtifactCorruptError(f"{folder}: {name} holds numbers that are not finite; use another model")


def weights_fingerprint(folder: str | Path) -> str:
    """SHA-256 of the weights in `folder`: of the file; of several, that of the one file they would make. So it does not
    depend on how the weights are cut. Reads all of them. Errors as in `load_weights`."""
    return content_sha256(open_tensor_files(folder, WEIGHTS_STEM))


def _fill(folder: Path, model: nn.Module, expected: Mapping[str, Tensor], otherwise: str, finite: bool) -> None:
    files = open_tensor_files(folder, WEIGHTS_STEM)
    _compare(files, expected, otherwise)
    orders = row_orders(model)
    for name, tensor in expected.items():
        whole = files.read(name)
        if finite:
            check_finite(folder, name, whole)
        fill_parameter(tensor, whole, orders.get(name))


def _compare(files: TensorFiles, expected: Mapping[str, Tensor], otherwise: str) -> None:
    found = {name: files.shape(name) for name in files.names}
    problem = _difference(found, {name: tuple(tensor.shape) for name, tensor in expected.items()})
    if problem:
        raise ArtifactMismatchError(f"{files.index or files.files[0]}: {otherwise}: {problem}")


def _difference(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    """What differs in names and shapes, in one line; empty if nothing does."""
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    parts = []
    for label, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            parts.append(f"{len(names)} {label} ({shown})")
    shapes = [n for n in sorted(expected.keys() & found.keys()) if expected[n] != found[n]]
    if shapes:
        name = shapes[0]
        parts.append(
            f"{len(shapes)} of another shape ({name}: expected {list(expected[name])}, found {list(found[name])})"
        )
    return "; ".join(parts)
