"""Our decoder as a Hugging Face folder that transformers opens: config.json, safetensors, generation_config.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from retro.artifacts.atomic import write_bytes_atomic, write_json_atomic
from retro.artifacts.new_folder import new_folder
from retro.config.errors import ConfigError
from retro.config.model import ModelConfig
from retro.model.huggingface.architecture import Architecture
from retro.model.huggingface.load import ARCHITECTURES
from retro.model.huggingface.mapping import Entry, same
from retro.model.huggingface.settings import CONFIG_NAME
from retro.model.huggingface.weight_files import INDEX_NAME, WEIGHTS_NAME
from retro.model.retro import RetroModel

GENERATION_NAME = "generation_config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Tokens:
    """Special tokens for config.json and generation_config.json."""

    bos_id: int
    eos_id: int
    pad_id: int


def choose_architecture(config: ModelConfig) -> Architecture:
    """The architecture that computes exactly what the decoder of `config` does.

    Raises ConfigError naming the fields that stand against the one that comes nearest.
    """
    found = {entry.model_type: entry.obstacles(config) for entry in ARCHITECTURES.values()}
    kind = min(found, key=lambda name: len(found[name]))
    if found[kind]:
        raise ConfigError(
            f"no Hugging Face architecture ({', '.join(found)}) expresses this model: {kind} comes nearest, but not "
            f"with {', '.join(found[kind])}"
        )
    return ARCHITECTURES[kind]


def save_huggingface(
    model: RetroModel,
    folder: str | Path,
    *,
    tokens: Tokens | None = None,
    max_positions: int = 2048,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    files: Mapping[str, bytes] | None = None,
    shard_bytes: int = 5_000_000_000,
) -> Architecture:
    """Write the decoder of `model` into the new folder `folder`, whole or not at all; retrieval parameters are left
    out, so what is written is the model with retrieval off.

    tokens: special tokens; max_positions: longest sequence as config.json states it (a model with learned positions
    states its own); files: more files by name, such as the tokenizer's; shard_bytes: largest weight file. Biases that
    the architecture has and the model has not are written as zeros. Returns the architecture.

    Raises ConfigError where no architecture expresses the model, `dtype` cannot hold a weight, or `folder` exists.
    """
    config = model.config
    architecture = choose_architecture(config)
    with new_folder(folder) as temporary:
        _write_weights(temporary, _tensors(model, architecture, DTYPES[dtype]), shard_bytes)
        ids: dict[str, Any] = {}
        if tokens is not None:
            ids = {"bos_token_id": tokens.bos_id, "eos_token_id": tokens.eos_id, "pad_token_id": tokens.pad_id}
        write_json_atomic(temporary / GENERATION_NAME, {"_from_model_config": True, **ids})
        settings = {
            "architectures": [architecture.class_name],
            "model_type": architecture.model_type,
            "torch_dtype": dtype,
            "tie_word_embeddings": config.tie_embeddings,
            "initializer_range": config.init_std,
            "use_cache": True,
            **ids,
            **architecture.write(config, max_positions),
        }
        write_json_atomic(temporary / CONFIG_NAME, settings)
        for name, content in (files or {}).items():
            write_bytes_atomic(temporary / name, content)
    return architecture


def _tensors(model: RetroModel, architecture: Architecture, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of theirs, one after the other."""
    state = model.state_dict()
    entries = architecture.entries(model.config)
    prefixed = [(architecture.prefix, entry) for entry in entries]
    if not model.config.tie_embeddings:
        prefixed.append(("", same("head.weight", architecture.head_names[0])))
    for prefix, entry in prefixed:
        for name, part in zip(entry.theirs, entry.split(_own(state, entry)), strict=True):
            converted = part.detach().to(dtype)
            if dtype != part.dtype and not torch.equal(converted.isfinite(), part.isfinite()):
                raise ConfigError(
                    f"dtype: {str(dtype).removeprefix('torch.')} cannot hold the numbers of {entry.ours} (up to "
                    f"{float(part.abs().max()):.3g}); choose another dtype"
                )
            yield prefix + name, converted.contiguous().cpu()


def _own(state: Mapping[str, Tensor], entry: Entry) -> Tensor:
    """Our tensor, or the zeros of a bias that this model does without."""
    if entry.ours in state or not entry.ours.endswith(".bias"):
        return state[entry.ours]
    weight = state[entry.ours.removesuffix("bias") + "weight"]
    return torch.zeros(weight.shape[0])


def _write_weights(folder: Path, tensors: Iterator[tuple[str, Tensor]], shard_bytes: int) -> None:
    """One file, or numbered ones with an index; at most `shard_bytes` (and one tensor) are held at a time."""
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        save_file(held, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and size + tensor.nbytes > shard_bytes:
            flush()
            size = 0
        # A copy: tensors of one file must not share memory.
        held[name] = tensor.clone()
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / WEIGHTS_NAME)
        return
    places = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        places.update(dict.fromkeys(names, file))
    write_json_atomic(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": places})
