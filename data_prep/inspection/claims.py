"""Which shards are being made right now, by whom: the claim files of data_prep/execution/claims.py, read only."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from data_prep.execution.records import WORK

_CLAIM = "claim-"


@dataclass(frozen=True)
class Claim:
    """shard: its name; owner: process and host; age_seconds: since its last sign of life, by this machine's clock."""

    shard: str
    owner: str
    age_seconds: float


def read_claims(folder: Path) -> list[Claim]:
    """Claims in an output folder, by shard; none where nobody works on it. Those of dead processes are among them until
    the next run takes them over: their age says so."""
    found = []
    now = time.time()
    for path in sorted((Path(folder) / WORK).glob(f"{_CLAIM}*")):
        try:
            beat = path.stat().st_mtime
            content = json.loads(path.read_text(encoding="utf-8"))
            owner = f"process {content['pid']} on {content['host']}"
        except OSError:
            continue  # given back meanwhile
        except (ValueError, KeyError, TypeError):
            owner = "an unknown process"
        found.append(Claim(path.name.removeprefix(_CLAIM), owner, max(0.0, now - beat)))
    return found
