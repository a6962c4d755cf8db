"""The folder that a new release is made in: nobody else's, and recognised when the same command runs again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from retro.artifacts.atomic import remove_dead_temporaries, write_json_atomic
from retro.config.errors import ConfigError

RELEASE_NAME = "release.json"
REQUEST_NAME = "update.json"


def claim_output(root: Path, request: dict[str, Any]) -> Path:
    """Make the folder `root`, note in it what is asked for, and return the path of its release.json to be.

    request: JSON-able, what decides the release, without any content of documents. Raises ConfigError where another
    release lies in the folder; one that the same request made may be there, and is made again in no time.
    """
    root = Path(root)
    path, note = root / RELEASE_NAME, root / REQUEST_NAME
    try:
        root.mkdir(parents=True, exist_ok=True)
        remove_dead_temporaries(root)
        if path.exists() and _read(note) != json.loads(json.dumps(request)):
            raise ConfigError(f"{path}: another release lies there; give another folder, nothing is overwritten")
        write_json_atomic(note, request)
    except OSError as error:
        raise ConfigError(f"{root}: cannot be written to ({error.strerror}); choose another folder") from None
    return path


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
