"""Text for benchmarks: a JSON Lines file, or the documentation of the installed packages, brought to a size."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from retro.artifacts.manifest import Manifest, describe_file, write_manifest
from retro.config.prep import IngestConfig, PythonDocsConfig
from retro.data.document import Document, DocumentWriter


def iter_texts(corpus: Path | None) -> Iterator[str]:
    """Field `text` of the lines of a .jsonl file (.gz and .xz too); without one the docstrings of what is installed."""
    if corpus is not None:
        opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(corpus.suffix, open)
        with opener(corpus, "rt", encoding="utf-8") as lines:
            yield from (json.loads(line)["text"] for line in lines)
        return
    from data_prep.readers.base import RawRecord
    from data_prep.readers.registry import build_reader

    reader = build_reader(IngestConfig(reader="python_docs", python_docs=PythonDocsConfig(packages=("numpy",))))
    for piece in reader.pieces():
        for record in reader.read(piece):
            if isinstance(record, RawRecord):
                yield record.fields["text"]


def read_texts(corpus: Path | None, size: int) -> tuple[list[str], bool]:
    """(texts of about `size` bytes, whether the corpus had to be used more than once to get there)."""
    texts: list[str] = []
    total = 0
    for text in iter_texts(corpus):
        if text.strip():
            texts.append(text)
            total += len(text.encode("utf-8"))
        if total >= size:
            return texts, False
    if not texts:
        raise SystemExit(f"{corpus}: no text")
    once = len(texts)
    while total < size:
        texts.append(texts[len(texts) % once])
        total += len(texts[-1].encode("utf-8"))
    return texts, True


def write_documents(folder: Path, texts: list[str], prefix: str = "d") -> Path:
    """A documents artifact of the texts, as ingest would make it."""
    folder.mkdir(parents=True)
    with DocumentWriter(folder, "00000") as writer:
        for i, text in enumerate(texts):
            writer.write(Document(f"{prefix}{i}", text, f"Title {i}", f"corpus.jsonl:{i + 1}", "", "train"))
    files = [describe_file(path) for path in sorted(folder.iterdir())]
    shards = [{"name": "00000", "rows": len(texts), "files": files, "stats": {}}]
    write_manifest(folder, Manifest("documents", "ingest", 1, "d" * 16, {}, {}, shards, [], {}))
    return folder


def hardware(*packages: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        pass
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
