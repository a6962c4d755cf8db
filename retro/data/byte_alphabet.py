"""The characters that byte-level tokenizers write bytes as."""

from __future__ import annotations


def _byte_of_character() -> dict[str, int]:
    """The alphabet of GPT-2: printable bytes stand for themselves, the others for characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()
