"""Tensor sets cut into pieces, written with the safetensors library and by hand, not with the code under test."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

Block = tuple[tuple[int, ...], tuple[int, ...]]  # offset, shape


def write_pieces(
    folder: Path, stem: str, tensors: Mapping[str, Tensor], blocks: Callable[[str, Tensor], list[tuple[int, Block]]]
) -> dict[str, Any]:
    """Write `<stem>-NNNNN.safetensors` and the index; returns the index. blocks: (number of the file, block) of each
    piece of a tensor."""
    content: dict[str, dict[str, Tensor]] = {}
    entries: dict[str, Any] = {}
    for name, tensor in tensors.items():
        pieces = []
        for count, (number, (offset, shape)) in enumerate(blocks(name, tensor)):
            file, key = f"{stem}-{number:05d}.safetensors", f"{name}#{count}"
            region = tuple(slice(a, a + n) for a, n in zip(offset, shape, strict=True))
            content.setdefault(file, {})[key] = tensor[region].clone().contiguous()
            pieces.append({"file": file, "key": key, "offset": list(offset), "shape": list(shape)})
        dtype = str(tensor.dtype).removeprefix("torch.")
        entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "pieces": pieces}
    for file, held in content.items():
        save_file(held, folder / file)
    index = {"format": 1, "tensors": entries}
    (folder / f"{stem}.index.json").write_text(json.dumps(index))
    return index


def by_rows(files: int) -> Callable[[str, Tensor], list[tuple[int, Block]]]:
    """As FSDP cuts: each tensor along its first dimension, one piece a file; scalars in the first file."""

    def blocks(name: str, tensor: Tensor) -> list[tuple[int, Block]]:
        if tensor.ndim == 0:
            return [(0, ((), ()))]
        rows = -(-tensor.shape[0] // files)
        return [
            (number, ((begin, *[0] * (tensor.ndim - 1)), (min(rows, tensor.shape[0] - begin), *tensor.shape[1:])))
            for number, begin in enumerate(range(0, tensor.shape[0], rows))
        ]

    return blocks


def split_file(folder: Path, stem: str, files: int) -> None:
    """Replace `<stem>.safetensors` by pieces."""
    from safetensors.torch import load_file

    tensors = load_file(folder / f"{stem}.safetensors")
    (folder / f"{stem}.safetensors").unlink()
    write_pieces(folder, stem, tensors, by_rows(files))
