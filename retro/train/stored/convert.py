"""A checkpoint in another number of files, bit for bit the same."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from retro.artifacts.byte_progress import ByteProgress
from retro.artifacts.checkpoint_folders import CHECKPOINT_KIND, MODEL, OPTIMIZER, find_checkpoint
from retro.artifacts.manifest import Manifest, describe_file, open_manifest, write_manifest
from retro.artifacts.new_folder import new_folder
from retro.config.errors import ArtifactCorruptError, ArtifactMissingError, ConfigError
from retro.model.tensor_bytes import kinds_of, metadata_of, write_file
from retro.model.tensor_files import TensorFiles, open_tensor_files, write_index
from retro.train.stored.checking import find_problems

Sizes = tuple[int, ...]


def convert_checkpoint(path: str | Path, output: str | Path, files: int, progress: bool = False) -> Manifest:
    """Write the checkpoint at `path` into the new folder `output`, each tensor set in at most `files` files.

    All checksums are compared first. The manifest is that of `path` but for the files, so a run goes on from either.
    `output` is whole or not there. Memory: one piece of a tensor. Raises ArtifactError subclasses (no checkpoint,
    unfinished, damaged) and ConfigError (`output` exists or cannot be written).
    """
    folder = find_finished(path)
    manifest = open_manifest(folder, CHECKPOINT_KIND)
    total = sum(int(entry["bytes"]) for entry in manifest.all_files())
    bar = ByteProgress(f"checking {folder.name}", total, progress)
    problems = find_problems(folder, manifest, True, bar.advance)
    bar.close()
    if problems:
        raise ArtifactCorruptError(f"{problems[0]}; use another checkpoint")
    sets = {stem: open_tensor_files(folder, stem) for stem in (MODEL, OPTIMIZER)}
    recorded = {entry["name"] for entry in manifest.all_files()}
    of_sets = {file.name for tensors in sets.values() for file in tensors.all_paths}
    if not of_sets <= recorded:
        name = min(of_sets - recorded)
        raise ArtifactCorruptError(f"{folder / name}: not recorded in the manifest; use another checkpoint")
    bar = ByteProgress(f"writing {Path(output).name}", total, progress)
    try:
        with new_folder(output) as temporary:
            written = [entry for tensors in sets.values() for entry in _write_set(temporary, tensors, files, bar)]
            for name in sorted(recorded - of_sets):
                shutil.copyfile(folder / name, temporary / name)
                written.append(describe_file(temporary / name))
            written.sort(key=lambda entry: entry["name"])
            result = dataclasses.replace(manifest, shards=[], files=written)
            write_manifest(temporary, result)
    except OSError as error:
        raise ConfigError(
            f"output: {output}: cannot be written ({error.strerror or error}); make room, or choose another place"
        ) from None
    bar.close()
    return result


def find_finished(path: str | Path) -> Path:
    """The folder of the checkpoint that `path` stands for (see `find_checkpoint`). Raises ArtifactMissingError."""
    path = Path(path)
    if not path.is_dir():
        raise ArtifactMissingError(f"{path}: no such run or checkpoint; correct the path")
    folder = find_checkpoint(path)
    if folder is None:
        raise ArtifactMissingError(f"{path}: no finished checkpoint in this run; train it until it has saved one")
    return folder


def cut(shape: Sizes, files: int, number: int) -> tuple[Sizes, Sizes] | None:
    """(offset, shape) of the piece of a tensor in file `number` of `files`, cut along its first dimension into pieces
    as equal as can be, the larger ones first; None if that file has none."""
    if not shape:
        return ((), ()) if number == 0 else None
    small, larger = divmod(shape[0], files)
    begin = number * small + min(number, larger)
    size = small + (number < larger)
    if size == 0 or 0 in shape:
        return None
    return (begin, *(0 for _ in shape[1:])), (size, *shape[1:])


def _write_set(folder: Path, tensors: TensorFiles, files: int, bar: ByteProgress) -> list[dict[str, Any]]:
    stem = tensors.stem
    if files == 1:
        path = folder / f"{stem}.safetensors"
        return [write_file(path, kinds_of(tensors), tensors.read, metadata_of(stem), bar.advance)]
    entries: dict[str, dict[str, Any]] = {
        name: {
            "dtype": str(tensors.dtype(name)).removeprefix("torch."),
            "shape": list(tensors.shape(name)),
            "pieces": [],
        }
        for name in tensors.names
    }
    written = []
    for number in range(files):
        places = {name: cut(tensors.shape(name), files, number) for name in tensors.names}
        held = {name: place for name, place in places.items() if place is not None}
        if not held:
            continue
        path = folder / f"{stem}-{number:05d}.safetensors"
        kinds = {name: (tensors.dtype(name), size) for name, (_, size) in held.items()}

        def read(name: str, held: dict[str, tuple[Sizes, Sizes]] = held) -> Any:
            return tensors.read_slice(name, *held[name])

        written.append(write_file(path, kinds, read, None, bar.advance))
        for name, (offset, size) in held.items():
            entries[name]["pieces"].append(
                {"file": path.name, "key": name, "offset": list(offset), "shape": list(size)}
            )
    write_index(folder, stem, entries)
    return [*written, describe_file(folder / f"{stem}.index.json")]
