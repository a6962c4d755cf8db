"""A finished artifact of prepared questions with its questions.json, written without the stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retro.artifacts.fingerprint import fingerprint
from retro.artifacts.manifest import Manifest, describe_file, write_manifest
from retro.data.qa.pointer import POINTER, write_pointer
from retro.data.qa.prepared import QA_PASSAGES_KIND, prepared_line, write_prepared
from retro.data.qa.record import PreparedQuestion


def write_prepared_folder(
    root: Path,
    task: Mapping[str, Any],
    splits: Mapping[str, Sequence[PreparedQuestion]],
    *,
    retrieval: Mapping[str, Any] | None = None,
    release: str | None = None,
    recall: Mapping[str, Any] | None = None,
) -> Path:
    """Write `root`/passages and `root`/questions.json; returns `root`.

    task: the definition as the artifact stores it (`TaskDefinition.to_dict()`).
    """
    folder = root / "passages"
    folder.mkdir(parents=True)
    shards = []
    for split, questions in splits.items():
        path = folder / f"prepared-{split}-00000.jsonl"
        write_prepared(path, questions)
        record = {"name": f"{split}-00000", "rows": len(questions), "files": [describe_file(path)], "stats": {}}
        shards.append(record)
    lines = [prepared_line(question).decode() for questions in splits.values() for question in questions]
    stats = {
        "task": dict(task),
        "release": release,
        "retrieval": dict(retrieval or {"method": "given"}),
        "splits": [
            {"split": split, "questions": len(questions), "recall": dict(recall or {})}
            for split, questions in splits.items()
        ],
    }
    write_manifest(
        folder,
        Manifest(
            kind=QA_PASSAGES_KIND,
            stage="qa_passages",
            stage_version=1,
            fingerprint=fingerprint("qa_passages", 1, {"lines": lines, "stats": stats}, {}),
            config={},
            inputs={},
            shards=shards,
            files=[],
            stats=stats,
        ),
    )
    write_pointer(root / POINTER, folder)
    return root
