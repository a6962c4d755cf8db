"""The content of a serialised sentencepiece model, which the package itself gives out only in part.

A protocol buffer (sentencepiece_model.proto); the few fields that are needed are read from the wire format directly.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2


@dataclass
class SentencePieceModel:
    """pieces: (text, score, type) by id; model_type: UNIGRAM, BPE or another; charsmap: compiled normalisation, empty =
    identity; dummy_prefix: a space is put in front of a text; removes_spaces: leading, trailing and doubled ones;
    escapes_spaces: pieces have U+2581 for a space. Defaults are those of the format."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    model_type: int = UNIGRAM
    charsmap: bytes = b""
    dummy_prefix: bool = True
    removes_spaces: bool = True
    escapes_spaces: bool = True


def parse_sentencepiece(content: bytes) -> SentencePieceModel:
    """Raises ValueError where the bytes are no such message."""
    model = SentencePieceModel()
    for number, value in _fields(content):
        if number == 1:
            entry = dict(_fields(value))
            score = struct.unpack("<f", entry[2])[0] if 2 in entry else 0.0
            model.pieces.append((entry.get(1, b"").decode("utf-8"), score, entry.get(3, NORMAL)))
        elif number == 2:
            model.model_type = dict(_fields(value)).get(3, UNIGRAM)
        elif number == 3:
            entry = dict(_fields(value))
            model.charsmap = entry.get(2, b"")
            model.dummy_prefix, model.removes_spaces, model.escapes_spaces = (bool(entry.get(n, 1)) for n in (3, 4, 5))
    return model


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of every field: int of a varint, bytes of the others."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(content, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(content, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if at + size > len(content):
            raise ValueError("truncated")
        yield key >> 3, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(content) or shift > 63:
            raise ValueError("truncated")
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
