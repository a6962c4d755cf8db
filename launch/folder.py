"""The folder of a launch: scripts, configurations, packages and source, written whole or not at all.

Its name ends in 8 characters that stand for everything in it: the same launch has the same folder, now and in a dry
run, and what a queued job reads never changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from launch.rendered import Rendered
from launch.snapshot import packages, revision
from retro.artifacts.source_code import compress_source
from retro.config.errors import ConfigError

_RECORD = "launch.json"
#: Kubernetes allows 1 MiB in all; some is left for scripts and configurations.
CONFIG_MAP_BYTES = 900 * 1024
SOURCE_NAME = "source.tar.xz"


def content_digest(parts: Sequence[str]) -> str:
    """8 hexadecimal digits of the texts."""
    return hashlib.sha256("\0".join(f"{len(part)}:{part}" for part in parts).encode()).hexdigest()[:8]


def write_folder(
    rendered: Rendered, *, configurations: Mapping[str, str], source: Mapping[str, bytes], source_folder: Path
) -> Path:
    """Write everything that `rendered` refers to; a folder that is there already is left as it is.

    source: files of the snapshot, empty = none; source_folder: where they are from. Raises ConfigError if the folder
    cannot be written.
    """
    folder = Path(rendered.folder)
    if (folder / _RECORD).is_file():
        return folder
    temporary = folder.with_name(f".{folder.name}.tmp-{secrets.token_hex(4)}")
    try:
        (temporary / "logs").mkdir(parents=True)
        texts = {**configurations, **dict(rendered.files), "packages.txt": packages()}
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        for name, content in source.items():
            path = temporary / "source" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if source and rendered.program == "kubectl":
            packed = compress_source(source)
            if len(packed) > CONFIG_MAP_BYTES:
                raise ConfigError(
                    f"snapshot: the source packs to {len(packed):,} bytes, a ConfigMap holds {CONFIG_MAP_BYTES:,}; put "
                    "the project into the image and set snapshot=false"
                )
            (temporary / SOURCE_NAME).write_bytes(packed)
        record = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": platform.node(),
            "python": platform.python_version(),
            "revision": revision(source_folder),
            "commands": [item.line(capture=False) for item in rendered.submissions],
        }
        (temporary / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        try:
            os.rename(temporary, folder)
        except OSError:
            if not (folder / _RECORD).is_file():  # else another launch of the same was faster
                raise
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror}); set launch_root") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
