"""Whether the tokenizer of a Hugging Face folder is the one that a release was prepared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ArtifactMissingError, ConfigError
from retro.data.tokenizer import (
    HUGGINGFACE_NAME,
    SENTENCEPIECE_NAME,
    SentencePieceTokenizer,
    load_huggingface,
    read_tokenizer_config,
)

#: Parts of a tokenizer.json that decide the ids of a text; the others pad, cut, and add special tokens.
_PARTS = ("model", "normalizer", "pre_tokenizer", "decoder", "added_tokens")


def check_base_tokenizer(base: Path, tokenizer: Path) -> None:
    """Raise unless the folder of a pretrained model holds the tokenizer of the artifact `tokenizer`.

    Sentencepiece models are compared byte by byte, tokenizer.json in the parts that decide the ids. Raises
    ArtifactMissingError (the folder holds none of that kind) or ArtifactMismatchError (another one).
    """
    kind = str(read_tokenizer_config(tokenizer).get("kind"))
    name = SENTENCEPIECE_NAME if kind == SentencePieceTokenizer.kind else HUGGINGFACE_NAME
    path = base / name
    remedy = _remedy(base)
    if not path.is_file():
        raise ArtifactMissingError(
            f"{path}: not found, so it is not known whether the release's tokenizer (kind {kind}) is this model's; "
            f"{remedy}"
        )
    found, expected = path.read_bytes(), (tokenizer / name).read_bytes()
    if found == expected:
        return
    difference = "another sentencepiece model"
    if kind != SentencePieceTokenizer.kind:
        theirs, ours = _parts_of(found, path), _parts_of(expected, tokenizer / name)
        different = [part for part in _PARTS if theirs.get(part) != ours.get(part)]
        if not different:
            return
        difference = f"another tokenizer (differs in {', '.join(different)})"
    raise ArtifactMismatchError(
        f"{path}: expected the release's tokenizer {tokenizer.name}, found {difference}; {remedy}"
    )


def _remedy(base: Path) -> str:
    for name, kind, path in ((HUGGINGFACE_NAME, "huggingface", base), (SENTENCEPIECE_NAME, "sentencepiece", base)):
        if (base / name).is_file():
            return (
                "prepare the corpus with the model's tokenizer: "
                f"tokenizer.kind={kind} tokenizer.existing.path={path} (`retro prep run`)"
            )
    return "put the model's tokenizer.json there, and prepare the corpus with it"


def _parts_of(content: bytes, path: Path) -> dict[str, Any]:
    """The description as the `tokenizers` package writes it, whatever version wrote the file."""
    try:
        description: dict[str, Any] = json.loads(load_huggingface(content.decode("utf-8")).to_str())
    except (ConfigError, ValueError) as error:
        raise ArtifactCorruptError(f"{path}: {error}") from None
    return description
