"""Histories as JSON lines: appended, never rewritten, and still readable after a kill."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def append_json_line(path: Path, row: dict[str, Any]) -> None:
    """Append `row`; it is on the disk when this returns. A line before it that a kill has cut off stays by itself."""
    with open(path, "ab+") as stream:
        torn = False
        if stream.seek(0, os.SEEK_END) > 0:
            stream.seek(-1, os.SEEK_END)
            torn = stream.read(1) != b"\n"
        line = json.dumps(row, ensure_ascii=False, allow_nan=False)
        stream.write((("\n" if torn else "") + line + "\n").encode("utf-8"))
        stream.flush()
        os.fsync(stream.fileno())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in `path`, in order, without lines that a kill has cut off; none if there is no such file."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
