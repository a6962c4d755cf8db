"""Models on disk: `model.safetensors` (weights) and `config.json` (configuration). Nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from retro.artifacts.atomic import atomic_path, write_json_atomic
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ArtifactMissingError, ConfigError
from retro.config.loader import from_dict, to_dict
from retro.config.model import ModelConfig
from retro.model.retro import RetroModel, is_retrieval_parameter

WEIGHTS_NAME = "model.safetensors"
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
    """The model that `save_model` wrote, in evaluation mode, on `device`.

    Raises ArtifactMissingError, ArtifactCorruptError (not readable) or ArtifactMismatchError (weights of another
    model).
    """
    folder = Path(folder)
    config = read_model_config(folder)
    check_weights(folder / WEIGHTS_NAME, config)
    with torch.device("meta"):
        model = RetroModel(config)
    model.to_empty(device=device)
    load_weights(folder / WEIGHTS_NAME, model)
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


def check_weights(path: str | Path, config: ModelConfig) -> None:
    """Compare names and shapes of a file of `save_weights` with those of the model of `config`; reads no tensor and
    makes no model. Errors as in `load_weights`."""
    path = Path(path)
    with _opened(path) as file:
        shapes = _shapes(file)
        model = outline(config, str(path.with_name(CONFIG_NAME)), len(shapes))
        _compare(path, shapes, model.state_dict(), "weights of another model")


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


def load_weights(path: str | Path, model: nn.Module) -> None:
    """Fill `model` from a file of `save_weights`; keys and shapes must be exactly the model's. Dtypes are converted.

    Memory: one tensor at a time besides the model. Raises ArtifactMissingError, ArtifactCorruptError or
    ArtifactMismatchError, each one line; the model is then as it was.
    """
    _fill(Path(path), model.state_dict(), "weights of another model")


def load_backbone_weights(path: str | Path, model: nn.Module) -> None:
    """As `load_weights` from a model without retrieval of the same decoder; retrieval parameters stay as they are."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not is_retrieval_parameter(name)}
    _fill(Path(path), state, "weights of another decoder")


@torch.no_grad()
def _fill(path: Path, expected: Mapping[str, Tensor], otherwise: str) -> None:
    with _opened(path) as file:
        _compare(path, _shapes(file), expected, otherwise)
        for name, tensor in expected.items():
            tensor.copy_(file.get_tensor(name))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The safetensors file; errors of reading are named."""
    if not path.is_file():
        raise ArtifactMissingError(f"{path}: weights not found")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactCorruptError(f"{path}: not a whole safetensors file: {str(error).splitlines()[0]}") from None


def _shapes(file: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _compare(path: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, Tensor], otherwise: str) -> None:
    problem = _difference(found, {name: tuple(tensor.shape) for name, tensor in expected.items()})
    if problem:
        raise ArtifactMismatchError(f"{path}: {otherwise}: {problem}")


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
