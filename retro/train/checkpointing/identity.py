"""What a checkpoint belongs to, and in which fields it belongs to something else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retro.artifacts.checkpoint_folders import CHECKPOINT_KIND
from retro.artifacts.manifest import Manifest, open_manifest
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError
from retro.config.train import complete_result_fields

REMEDY = "move that checkpoint away to resume from the one before it, or restore the file"


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to: result-changing configuration, fingerprints of release and tokenizer, of the
    weights that the run began with (None = random ones), and of the prepared questions that it is trained on (None = of
    none)."""

    config: dict[str, Any]
    release: str
    tokenizer: str
    init_from: str | None = None
    questions: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As stored in the manifest; lists instead of tuples, as JSON gives them back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def open_checkpoint_manifest(path: Path) -> Manifest:
    """The manifest of the checkpoint at `path`; every file is there and has its size. Raises ArtifactError
    subclasses."""
    try:
        return open_manifest(path, CHECKPOINT_KIND)
    except ArtifactCorruptError as error:
        raise ArtifactCorruptError(f"{str(error).split(';')[0]}; {REMEDY}") from None


def check_identity(path: Path, identity: Identity) -> int:
    """The step of the checkpoint at `path`.

    Raises ArtifactMismatchError naming the fields in which it belongs to something else than `identity`, and
    ArtifactError subclasses if it cannot be opened.
    """
    manifest = open_checkpoint_manifest(path)
    differences = describe_differences(_complete(manifest.config), _complete(identity.to_dict()))
    if differences:
        raise ArtifactMismatchError(
            f"{path}: belongs to another run than this configuration: {differences}; give the run another name=, or "
            "restore these values (a change of steps changes the whole learning-rate schedule, so it needs a new name)"
        )
    return int(manifest.stats["step"])


def _complete(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that the version which wrote the checkpoint did not have yet get their defaults; the weights that the run
    began with are called what people know them as."""
    config = complete_result_fields(identity.get("config", {}))
    rest = {name: value for name, value in identity.items() if name not in ("config", "init_from", "questions")}
    began = {"weights of init_from or retrofit.base": identity.get("init_from")}
    asked = {"content of qa.questions": identity.get("questions")}
    return json.loads(json.dumps({"config": config, **rest, **began, **asked}))


def describe_differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """The fields in which two nested mappings differ, in one line: `path: checkpoint X, now Y, ...`; empty if none."""
    old, new = _flatten(found), _flatten(expected)
    fields = [
        key for key in [*new, *(k for k in old if k not in new)] if old.get(key, _ABSENT) != new.get(key, _ABSENT)
    ]
    shown = [f"{key}: checkpoint {_show(old, key)}, now {_show(new, key)}" for key in fields[:6]]
    if len(fields) > 6:
        shown.append(f"and {len(fields) - 6} more")
    return ", ".join(shown)


_ABSENT = object()


def _show(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "absent"


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, item in value.items():
        # "config." says nothing to a user, who knows the fields as they stand in the file.
        full = f"{prefix}{key}" if not (prefix == "" and key == "config") else ""
        if isinstance(item, Mapping):
            out.update(_flatten(item, f"{full}." if full else ""))
        else:
            out[full] = item
    return out
