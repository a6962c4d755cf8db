"""Whether a tokenizer.json gives every text back: decided from what its parts do, and on the side of no."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from retro.data.byte_alphabet import BYTE_OF_CHARACTER


def is_lossless(description: dict[str, Any]) -> bool:
    """Whether decoding what was encoded is the text, for every text: a byte-level tokenizer that changes nothing.

    description: content of a tokenizer.json. Nothing may be normalised, put in front of the text (add_prefix_space) or
    dropped between words (behavior "Removed", splitters at white space); every byte must have a token, and no added
    token may swallow the spaces beside it.
    """
    if description.get("normalizer"):
        return False
    decoders = list(_parts(description.get("decoder"), "decoders"))
    if [part.get("type") for part in decoders] != ["ByteLevel"]:
        return False
    before = list(_parts(description.get("pre_tokenizer"), "pretokenizers"))
    if "ByteLevel" not in {part.get("type") for part in before} or not all(_keeps_all(part) for part in before):
        return False
    model = description.get("model") or {}
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not all(character in vocabulary for character in BYTE_OF_CHARACTER):
        return False
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    added = [token for token in description.get("added_tokens") or [] if not token.get("special")]
    return not any(token.get("lstrip") or token.get("rstrip") or token.get("normalized") for token in added)


def decoder_types(description: dict[str, Any]) -> set[str]:
    """Types of the decoders of a tokenizer.json, through sequences."""
    return {str(part.get("type")) for part in _parts(description.get("decoder"), "decoders")}


def _parts(part: Any, inner: str) -> Iterator[dict[str, Any]]:
    """A component and, where it is a sequence, its components."""
    if not isinstance(part, dict):
        return
    if part.get("type") == "Sequence":
        for item in part.get(inner, []):
            yield from _parts(item, inner)
    else:
        yield part


def _keeps_all(part: dict[str, Any]) -> bool:
    kind = part.get("type")
    if kind == "ByteLevel":
        return not part.get("add_prefix_space")
    if kind in ("Split", "Punctuation"):
        return part.get("behavior") != "Removed"
    return kind == "Digits"
