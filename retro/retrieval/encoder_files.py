"""The files of a Hugging Face encoder: where they are found, and the hashes that identify them."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retro.artifacts.fingerprint import sha256_file
from retro.config.errors import ConfigError
from retro.config.prep_embed import TransformerConfig

#: Folders, separated as in PATH, in which a model is looked for by the last part of its name: where the models lie may
#: differ from machine to machine, what they are is checked by their hashes.
MODELS_VARIABLE = "RETRO_MODELS"

#: Weights are never unpickled: no *.bin, no *.pt.
WEIGHT_FILES = ("*.safetensors",)
CONFIG_FILES = ("config.json",)
#: All that can decide into which tokens a text is cut: fast tokenizers, word pieces, byte-level BPE, sentencepiece.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
)


@dataclass(frozen=True)
class EncoderFiles:
    """A folder with weights, config.json and tokenizer files, and a SHA-256 over the names and contents of each."""

    folder: Path
    weights_sha256: str
    config_sha256: str
    tokenizer_sha256: str

    def hashes(self) -> dict[str, str]:
        """The three hashes by name: what the encoder is, wherever it lies."""
        return {
            "weights_sha256": self.weights_sha256,
            "config_sha256": self.config_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
        }


def find_encoder(config: TransformerConfig) -> EncoderFiles:
    """The encoder that the configuration names; downloaded from the hub if it is no folder here.

    Raises ConfigError where there is none, or parts of it are missing.
    """
    folder = _folder(config)
    return EncoderFiles(
        folder,
        weights_sha256=_hash_files(folder, WEIGHT_FILES, "pickled weights are not read, convert them"),
        config_sha256=_hash_files(folder, CONFIG_FILES, "give the folder of a whole model"),
        tokenizer_sha256=_hash_files(folder, TOKENIZER_FILES, "give the folder of a whole model"),
    )


def _folder(config: TransformerConfig) -> Path:
    name = Path(config.model).expanduser()
    places = [name, *(Path(p) / name.name for p in os.environ.get(MODELS_VARIABLE, "").split(os.pathsep) if p)]
    for place in places:
        if place.is_dir():
            return place.resolve()
    if name.is_absolute() or config.model.startswith(".") or config.model.count("/") > 1:
        raise ConfigError(
            f"transformer.model: folder {config.model!r} not found, neither is {name.name!r} in a folder that "
            f"{MODELS_VARIABLE} lists; correct the path, or set {MODELS_VARIABLE}"
        )
    try:
        from huggingface_hub import snapshot_download

        # Weights in several files come with an index of them.
        patterns = [*WEIGHT_FILES, "*.safetensors.index.json", *TOKENIZER_FILES, *CONFIG_FILES]
        offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
        return Path(
            snapshot_download(config.model, revision=config.revision, allow_patterns=patterns, local_files_only=offline)
        )
    except Exception as error:  # the hub client raises many kinds, all meaning "not to be had"
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"transformer.model: {config.model!r} is no local folder and cannot be had from the hub ({line}); "
            "give the path of a downloaded model"
        ) from None


def _hash_files(folder: Path, patterns: Sequence[str], advice: str) -> str:
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not files:
        raise ConfigError(f"transformer.model: {folder}: expected {' or '.join(patterns)}, found none; {advice}")
    digest = hashlib.sha256()
    try:
        for path in files:
            state = path.stat()
            digest.update(f"{path.name} {_hash_file(path, state.st_size, state.st_mtime_ns)}\n".encode())
    except OSError as error:
        raise ConfigError(f"transformer.model: {path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


@functools.lru_cache(maxsize=256)
def _hash_file(path: Path, size: int, modified_ns: int) -> str:
    """Weights of gigabytes are read once per process, however many stages ask."""
    return sha256_file(path)
