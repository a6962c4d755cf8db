"""The safetensors files of a Hugging Face folder, opened without reading a tensor before it is asked for."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from retro.artifacts.fingerprint import sha256_file
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ArtifactMissingError
from retro.model.huggingface.settings import read_json_object

WEIGHTS_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
_PICKLES = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.ckpt.index",
    "tf_model.h5",
    "flax_model.msgpack",
)


class WeightFiles:
    """All tensors of a folder by name, from one file or several. A context manager.

    Raises ArtifactMissingError (no weights; or in another format only, with the way to convert them),
    ArtifactCorruptError (truncated, not safetensors, a file of the index missing) or ArtifactMismatchError (a tensor
    of no floating-point type).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = weight_paths(folder)
        self._file_of: dict[str, Any] = {}
        self._stack = ExitStack()
        try:
            for path in self.paths:
                self._open(path)
            self._check_index()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> WeightFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._file_of[name].get_slice(name).get_shape())

    def check_float(self, name: str) -> None:
        """Raise ArtifactMismatchError unless the tensor is of a floating-point type that torch computes with."""
        found = self._file_of[name].get_slice(name).get_dtype()
        if found not in _FLOATS:
            raise ArtifactMismatchError(
                f"{self.folder}: {name}: expected one of {', '.join(_FLOATS)}, found {found}; give weights that are "
                "not quantised"
            )

    def read(self, name: str) -> Tensor:
        """The tensor on the CPU, in the type it is stored in."""
        tensor: Tensor = self._file_of[name].get_tensor(name)
        return tensor

    def _open(self, path: Path) -> None:
        try:
            file = self._stack.enter_context(safe_open(path, framework="pt", device="cpu"))
            names = list(file.keys())
        except (SafetensorError, OSError, ValueError) as error:
            raise ArtifactCorruptError(
                f"{path}: not a whole safetensors file ({str(error).splitlines()[0]}); get the file again"
            ) from None
        for name in names:
            if name in self._file_of:
                raise ArtifactCorruptError(f"{path}: {name} is in another file too; get the folder again")
            self._file_of[name] = file

    def _check_index(self) -> None:
        if len(self.paths) == 1 and self.paths[0].name == WEIGHTS_NAME:
            return
        missing = sorted(set(_read_index(self.folder / INDEX_NAME)) - self.names)
        if missing:
            raise ArtifactCorruptError(
                f"{self.folder / INDEX_NAME}: names {missing[0]}, which no file holds; get the folder again"
            )


def weight_paths(folder: Path) -> list[Path]:
    """The files with weights, sorted by name; errors as in WeightFiles."""
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    index = folder / INDEX_NAME
    if index.is_file():
        names = sorted(set(_read_index(index).values()))
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ArtifactCorruptError(f"{index}: expected names of safetensors files, found {name!r}")
            if not (folder / name).is_file():
                raise ArtifactCorruptError(f"{folder / name}: named in {INDEX_NAME} but missing; get the file again")
        return [folder / name for name in names]
    pickled = [name for name in _PICKLES if (folder / name).exists()] or sorted(p.name for p in folder.glob("*.bin"))
    if pickled:
        raise ArtifactMissingError(
            f"{folder}: holds {pickled[0]} but no {WEIGHTS_NAME}; pickles run code when they are opened, so only "
            'safetensors are read. Where you trust the file, convert it once: python -c "from transformers import '
            f"AutoModelForCausalLM as M; M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\""
        )
    raise ArtifactMissingError(
        f"{folder}: no {WEIGHTS_NAME} and no {INDEX_NAME}; expected the weights beside config.json"
    )


def fingerprint_weights(folder: Path) -> str:
    """16 digits over the contents of the weight files, wherever the folder lies."""
    digests = [sha256_file(path) for path in weight_paths(folder)]
    return digests[0][:16] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]


def _read_index(path: Path) -> dict[str, str]:
    entries = read_json_object(path).get("weight_map")
    if not isinstance(entries, dict) or not all(isinstance(value, str) for value in entries.values()) or not entries:
        raise ArtifactCorruptError(f"{path}: expected an entry 'weight_map' of tensor and file names; get it again")
    return entries
