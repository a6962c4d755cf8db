"""The index of a tensor set: which pieces, in which files, make up each tensor. Checked as content that anybody may
have written."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retro.artifacts.atomic import write_text_atomic
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError
from retro.model.tensor_header import DTYPES, parse_object, parse_sizes, shown

FORMAT = 1
_DTYPE_OF = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
Errors = Callable[[str], Exception]


@dataclass(frozen=True)
class Piece:
    """A block of a tensor: from `offset` on, of `shape`, under the name `key` in the file named `file`."""

    file: str
    key: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TensorEntry:
    """A tensor and the pieces that cover it, each element exactly once; one without elements may have none."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def index_name(stem: str) -> str:
    """The name of the index of the set `stem`."""
    return f"{stem}.index.json"


def write_index(folder: str | Path, stem: str, tensors: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `<stem>.index.json`, whole or not at all, one tensor a line, sorted by name.

    tensors: name -> {"dtype": "float32", "shape", "pieces": [{"file", "key", "offset", "shape"}]}. Raises ValueError
    for what `read_index` would refuse.
    """
    plain = {name: {**tensor, "pieces": [dict(p) for p in tensor["pieces"]]} for name, tensor in tensors.items()}
    parse_entries(plain, stem, ValueError)
    lines = [
        f"  {json.dumps(name)}: {json.dumps(plain[name], sort_keys=True, allow_nan=False)}" for name in sorted(plain)
    ]
    body = "{\n" + ",\n".join(lines) + "\n }" if lines else "{}"
    write_text_atomic(Path(folder) / index_name(stem), f'{{"format": {FORMAT}, "tensors": {body}}}\n')


def read_index(folder: Path, stem: str) -> dict[str, TensorEntry]:
    """The tensors of the set by name; no other file is looked at.

    Raises ArtifactCorruptError naming what is wrong, or ArtifactMismatchError for a format of a newer version.
    """
    path = folder / index_name(stem)

    def error(problem: str) -> ArtifactCorruptError:
        return ArtifactCorruptError(f"{path}: {problem}; restore it from a copy, or use another checkpoint")

    try:
        text = path.read_bytes()
    except OSError as problem:
        raise error(problem.strerror or str(problem)) from None
    content = parse_object(text, error)
    if type(content.get("format")) is int and content["format"] > FORMAT:
        raise ArtifactMismatchError(
            f"{path}: expected format {FORMAT} or older, found {content['format']}; update this package"
        )
    if content.keys() != {"format", "tensors"} or content["format"] != FORMAT or type(content["format"]) is not int:
        raise error(f"expected the entries format ({FORMAT}) and tensors, found {shown(content)}")
    if not isinstance(content["tensors"], dict):
        raise error(f"tensors: expected an object, found {shown(content['tensors'])}")
    return parse_entries(content["tensors"], stem, error)


def parse_entries(tensors: Mapping[str, Any], stem: str, error: Errors) -> dict[str, TensorEntry]:
    """The index's entries, each checked by itself, and that no key of a file is used twice."""
    out = {}
    used: set[tuple[str, str]] = set()
    for name, value in tensors.items():
        out[name] = _parse_entry(name, value, stem, error)
        for piece in out[name].pieces:
            if (piece.file, piece.key) in used:
                raise error(f"{shown(name)}: {piece.file}: {shown(piece.key)} is used twice")
            used.add((piece.file, piece.key))
    return out


def _parse_entry(name: str, value: Any, stem: str, error: Errors) -> TensorEntry:
    def wrong(problem: str) -> Exception:
        return error(f"{shown(name)}: {problem}")

    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "pieces"}:
        raise wrong(f"expected dtype, shape and pieces, found {shown(value)}")
    dtype = _DTYPE_OF.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise wrong(f"dtype: expected one of {', '.join(_DTYPE_OF)}, found {shown(value['dtype'])}")
    shape = parse_sizes(value["shape"], "shape", wrong)
    if not isinstance(value["pieces"], list):
        raise wrong(f"pieces: expected a list, found {shown(value['pieces'])}")
    pieces = tuple(_parse_piece(piece, shape, stem, wrong) for piece in value["pieces"])
    covered = sum(math.prod(piece.shape) for piece in pieces)
    overlap = _overlap(pieces)
    if overlap is not None:
        one, other = overlap
        raise wrong(f"the pieces {one.file} {shown(one.key)} and {other.file} {shown(other.key)} overlap")
    if covered != math.prod(shape):
        raise wrong(f"the pieces cover {covered} of {math.prod(shape)} elements")
    return TensorEntry(dtype, shape, pieces)


def _parse_piece(value: Any, whole: tuple[int, ...], stem: str, wrong: Errors) -> Piece:
    if not isinstance(value, dict) or value.keys() != {"file", "key", "offset", "shape"}:
        raise wrong(f"pieces: expected file, key, offset and shape, found {shown(value)}")
    file, key = value["file"], value["key"]
    # No name that matches leaves the folder.
    if not isinstance(file, str) or not re.fullmatch(rf"{re.escape(stem)}-[0-9]{{5,9}}\.safetensors", file):
        raise wrong(f"file: expected a name like {stem}-00000.safetensors, found {shown(file)}")
    if not isinstance(key, str):
        raise wrong(f"key: expected a text, found {shown(key)}")
    offset, shape = (parse_sizes(value[field], f"{file}: {field}", wrong) for field in ("offset", "shape"))
    if not len(offset) == len(shape) == len(whole) or any(
        a + n > limit for a, n, limit in zip(offset, shape, whole, strict=True)
    ):
        raise wrong(
            f"{file}: a piece of shape {shown(list(shape))} at {shown(list(offset))} lies outside the tensor of shape "
            f"{shown(list(whole))}"
        )
    return Piece(file, key, offset, shape)


def _overlap(pieces: Iterable[Piece]) -> tuple[Piece, Piece] | None:
    """Two pieces that share an element, or None.

    A sweep along the dimension with the most cuts: of n pieces in a row each is compared with its neighbor, of n in a
    grid with sqrt(n).
    """
    blocks = [piece for piece in pieces if math.prod(piece.shape)]
    if len(blocks) < 2:
        return None
    if not blocks[0].shape:
        return blocks[0], blocks[1]
    cuts = [len({piece.offset[d] for piece in blocks}) for d in range(len(blocks[0].shape))]
    along = cuts.index(max(cuts))
    open_blocks: list[Piece] = []
    for piece in sorted(blocks, key=lambda piece: piece.offset[along]):
        start = piece.offset[along]
        open_blocks = [other for other in open_blocks if other.offset[along] + other.shape[along] > start]
        for other in open_blocks:
            if intersection(piece.offset, piece.shape, other.offset, other.shape) is not None:
                return other, piece
        open_blocks.append(piece)
    return None


def intersection(
    offset: tuple[int, ...], shape: tuple[int, ...], other_offset: tuple[int, ...], other_shape: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(offset, shape) of what two blocks of one tensor share; None if they share no element."""
    starts = tuple(map(max, offset, other_offset))
    ends = (min(a + n, b + m) for a, n, b, m in zip(offset, shape, other_offset, other_shape, strict=True))
    sizes = tuple(end - start for start, end in zip(starts, ends, strict=True))
    return (starts, sizes) if all(size > 0 for size in sizes) else None
