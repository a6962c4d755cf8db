"""Which shards are being made right now, by whom."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Claim:
    """shard: its name; owner: host and process; age_seconds: since its last sign of life."""

    shard: str
    owner: str
    age_seconds: float


def read_claims(folder: Path) -> list[Claim]:
    """Claims in an output folder, by shard; none where nobody works on it."""
    return []
