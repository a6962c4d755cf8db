"""Identity of an artifact: a hash of what made it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_BLOCK = 8 << 20


def canonical_json(value: Any) -> str:
    """JSON text with sorted keys and no optional white space: equal values give equal text.

    Raises ValueError for NaN and infinities and TypeError for anything that JSON has no form for.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """16 hexadecimal digits over stage name, stage version, result-changing configuration and input fingerprints."""
    text = canonical_json({"stage": stage, "version": version, "config": dict(config), "inputs": dict(inputs)})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256_file(path: str | Path, advance: Callable[[int], None] = lambda count: None) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in blocks; `advance` is called with the bytes of each."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()
