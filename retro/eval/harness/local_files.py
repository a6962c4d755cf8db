"""Data of the harness's tasks out of local files instead of the hub: what the tasks in tasks/ call.

The files are those of the local evaluation data of LLM Foundry and GPT-NeoX: JSON lines, one question each; a CSV file
with a header; or the text of WikiText, cut into articles.
"""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retro.config.errors import ArtifactCorruptError, ArtifactMissingError, ConfigError

if TYPE_CHECKING:
    from datasets import Dataset

# ` = Title = ` alone on its line begins an article; ` = = Part = = ` does not.
_ARTICLE = re.compile(r"^ = [^=].*? = ?$", re.MULTILINE)


def read_local(*, local_file: str, data: str | None = None, **_: Any) -> dict[str, Dataset]:
    """{"test": rows} of one file, as the harness calls it: with `--metadata`, which says data=FOLDER.

    The file lies in the folder or in one directly below. Raises ConfigError where no folder is given,
    ArtifactMissingError where the file is not there, ArtifactCorruptError where it cannot be read.
    """
    from datasets import Dataset

    if data is None:
        raise ConfigError(f"local tasks read their files from a folder, here {local_file}: give --metadata data=FOLDER")
    path = find_local(Path(data), local_file)
    rows = read_rows(path)
    if not rows:
        raise ArtifactCorruptError(f"{path}: expected at least one example, found none")
    return {"test": Dataset.from_list(rows)}


def find_local(folder: Path, name: str) -> Path:
    """The file of that name in the folder or directly below it; raises ArtifactMissingError."""
    for path in [folder / name, *sorted(folder.glob(f"*/{name}"))]:
        if path.is_file():
            return path
    raise ArtifactMissingError(f"{folder}: no file {name} there or directly below; correct --metadata data=FOLDER")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl, .csv or .txt file, of a text one {"page"} per article. Raises ArtifactCorruptError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactCorruptError(f"{path}: not readable as UTF-8 text ({error})") from None
    if path.suffix == ".jsonl":
        return [_parse(line, f"{path}:{number}") for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if path.suffix == ".csv":
        return [dict(row) for row in csv.DictReader(io.StringIO(text))]
    if path.suffix == ".txt":
        starts = [match.start() for match in _ARTICLE.finditer(text)] or [0]
        pages = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
        return [{"page": page} for page in pages if page.strip()]
    raise ConfigError(f"{path}: expected a .jsonl, .csv or .txt file")


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ArtifactCorruptError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise ArtifactCorruptError(f"{where}: expected an object, found {type(row).__name__}")
    return row
