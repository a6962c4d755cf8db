"""The beginning of a text in one line of a terminal."""

from __future__ import annotations

_LENGTH = 90


def snippet(text: str, length: int = _LENGTH) -> str:
    """The text's beginning in one line."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
