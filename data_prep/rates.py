"""Rates of work that the cost model multiplies with: sets of them in YAML, each number with its source."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from retro.config.errors import ConfigError

_FOLDER = Path(__file__).parent / "rate_sets"
SETS = ("papers", "measured")

#: Every rate that a set may have: what it is, in which unit. "per core" is one CPU core at work on nothing else.
MEANING = {
    "text_bytes_per_token": "bytes of UTF-8 text per token of the language model",
    "tokens_per_document": "mean length of a document",
    "compression": "bytes of text per stored (zstd) byte",
    "record_bytes_per_document": "id, title, source and group of a document, uncompressed",
    "ingest_mb_per_core_s": "text read, checked and stored: MB per core-second",
    "deduplicate_mb_per_core_s": "text signed, compared and written again: MB per core-second",
    "tokenize_mb_per_core_s": "text tokenized: MB per core-second",
    "chunk_chunks_per_core_s": "chunks cut per core-second",
    "lexical_chunks_per_core_s": "chunks of 64 tokens embedded by the lexical embedder per core-second",
    "embed_chunks_per_core_s": "chunks of 64 tokens embedded by a transformer per core-second",
    "embed_chunks_per_gpu_hour": "chunks of 64 tokens embedded by a transformer per GPU-hour",
    "train_gflops_per_core": "10^9 operations per core-second in the k-means of the lists",
    "train_gflops_per_gpu": "10^9 operations per GPU-second in the k-means of the lists",
    "encode_vectors_per_core_s": "vectors encoded and added to an index per core-second",
    "search_ms_per_chunk": "search of one query chunk, whatever the index; null: from scan_mb_per_core_s",
    "scan_mb_per_core_s": "codes compared by a search: MB per core-second",
    "bm25_index_chunks_per_core_s": "chunks of 64 tokens counted, inverted and weighed per core-second",
    "bm25_postings_per_token": "postings of a BM25 index per token",
    "bm25_search_ms_per_million": "BM25 search of one query chunk: core-milliseconds per million chunks searched",
}


class Rate(NamedTuple):
    """A number and where it is from."""

    value: float
    source: str


class Rates:
    """A set of rates that remembers which of them were asked for, so that exactly these are told as assumptions."""

    def __init__(self, name: str, values: dict[str, Rate]) -> None:
        self.name, self._values = name, dict(values)
        self.used: dict[str, Rate] = {}

    def __getitem__(self, name: str) -> float:
        """The value. Raises ConfigError where this set has none."""
        if name not in self._values:
            raise ConfigError(
                f"rates {self.name!r} have no {name} ({MEANING[name]}); add {name}=NUMBER or --rates FILE.yaml"
            )
        self.used[name] = self._values[name]
        return self._values[name].value

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def names(self) -> list[str]:
        """Of the rates that there are."""
        return sorted(self._values)


def load_rates(name: str = "papers", overrides: Iterable[str] = ()) -> Rates:
    """A set by name (SETS) or by the path of a YAML file, with `key=value` overrides.

    A file holds `base: NAME` (another set that it changes; papers where absent), and rates as `name: number` or
    `name: {value: number, source: text}`; null takes one away. Raises ConfigError for what it cannot read.
    """
    values = _read(_FOLDER / f"{name}.yaml" if name in SETS else Path(name), set())
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator:
            raise ConfigError(f"override {item!r}: expected NAME=NUMBER, e.g. embed_chunks_per_gpu_hour=2e7")
        values.update(_rate(key, _number(text), "command line", "given on the command line"))
        if _number(text) is None:
            values.pop(key, None)
    return Rates(name, values)


def _read(path: Path, seen: set[Path]) -> dict[str, Rate]:
    if not path.is_file():
        raise ConfigError(f"{path}: rates not found; expected {' or '.join(SETS)}, or a YAML file")
    if path.resolve() in seen:
        raise ConfigError(f"{path}: its base is itself; name {' or '.join(SETS)}, or nothing")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected NAME: NUMBER lines, found {type(content).__name__}")
    inner = path.parent == _FOLDER
    base = content.pop("base", None if inner else "papers")
    content.pop("about", None)
    values: dict[str, Rate] = {}
    if base is not None:
        place = _FOLDER / f"{base}.yaml" if base in SETS else path.parent / str(base)
        values = _read(place, {*seen, path.resolve()})
    for key, entry in content.items():
        if isinstance(entry, dict):
            strange = set(entry) - {"value", "source"}
            if strange or "value" not in entry:
                raise ConfigError(f"{path}: {key}: expected value and source, found {sorted(entry)}")
            value, source = entry["value"], str(entry.get("source", path.name))
        else:
            value, source = entry, path.name
        values.update(_rate(str(key), value, str(path), source))
        if value is None:
            values.pop(str(key), None)
    return values


def _rate(name: str, value: Any, where: str, source: str) -> dict[str, Rate]:
    if name not in MEANING:
        import difflib

        near = difflib.get_close_matches(name, MEANING, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(MEANING)}"
        raise ConfigError(f"{where}: unknown rate {name!r}; {hint}")
    if value is None:
        return {}
    number = _number(str(value)) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number) or number <= 0:
        raise ConfigError(f"{where}: {name}: expected a number above 0 ({MEANING[name]}), found {value!r}")
    return {name: Rate(float(number), source)}


def _number(text: str) -> float | str | None:
    """The number that the text is, None for null, the text where it is neither."""
    if text.strip().lower() in ("null", "none", "~"):
        return None
    try:
        return float(text)
    except ValueError:
        return text
