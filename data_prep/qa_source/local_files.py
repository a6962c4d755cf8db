"""Records of question files: JSON Lines, JSON, tables, Parquet; all but Parquet also compressed."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.readers.base import CORRUPT_FILE, TRUNCATED_FILE
from data_prep.readers.compressed import COMPRESSED, BrokenFileError, iter_blocks, iter_lines
from data_prep.readers.encoding import without_mark
from data_prep.readers.hub_data import one_line
from retro.config.errors import ArtifactCorruptError, ArtifactError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")

_COLUMN = re.compile(r"column_\d+")
_LONGEST_LINE = 1 << 30
_ROWS = 1024
_LISTS = ("data", "questions", "examples")
_REASONS = {CORRUPT_FILE: "corrupt", TRUNCATED_FILE: "truncated"}


def iter_records(path: Path, question_field: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, record) of a file, in order; `where` names file and line, or record.

    Tables have a header, unless question_field is column_N: then their fields are column_1, column_2, ...; DPR's tables
    are such ones, and a .csv whose first line has a tab is divided by tabs. JSON is a list of records, such a list
    under "data", records one after the other, or SQuAD's nested form, which comes as {"id", "question", "answers",
    "title", "context"}. Raises ArtifactError, one line, for a file that cannot be read.
    """
    kind = _kind(path)
    try:
        if kind == ".parquet":
            yield from _parquet_records(path)
        elif kind == ".jsonl":
            yield from _json_lines(path)
        elif kind == ".json":
            yield from _json_records(path)
        else:
            yield from _table_records(path, kind, headed=_COLUMN.fullmatch(question_field) is None)
    except BrokenFileError as error:
        raise ArtifactCorruptError(
            f"{path}: {_REASONS.get(error.reason, 'cannot be read')}; get the file again, or correct its name"
        ) from None
    except UnicodeDecodeError as error:
        raise ArtifactCorruptError(f"{path}: expected UTF-8, found other bytes at {error.start}; convert it") from None


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = bool(suffixes) and suffixes[-1] in COMPRESSED
    kind = suffixes[-2 if compressed else -1] if len(suffixes) > compressed else ""
    if kind not in SUFFIXES or (compressed and kind == ".parquet"):
        raise ArtifactError(
            f"{path}: expected {', '.join(SUFFIXES)} (all but Parquet also with {', '.join(COMPRESSED)}), found "
            f"{path.name!r}; convert or rename it"
        )
    return kind


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    _, blocks = without_mark(iter_blocks(path))
    for number, line in enumerate(iter_lines(blocks, _LONGEST_LINE), start=1):
        where = f"{path}:{number}"
        if line is None:
            raise ArtifactCorruptError(f"{where}: longer than {_LONGEST_LINE >> 30} GiB; this is not JSON Lines")
        if line.strip():
            try:
                record = json.loads(line)
            except UnicodeDecodeError:
                raise ArtifactCorruptError(f"{where}: expected UTF-8, found other bytes; convert the file") from None
            except (ValueError, RecursionError) as error:
                raise ArtifactCorruptError(f"{where}: not JSON ({error}); correct the line") from None
            yield where, _mapping(record, where)


def _json_records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    text = _whole_text(path)
    # A list is read item by item: those with passages have gigabytes.
    begin = re.match(r"\s*\[", text)
    position = begin.end() if begin else 0
    found: list[Any] = []
    for number, record in enumerate(_iter_values(text, position, path, in_list=begin is not None)):
        if begin is None and number == 0 and isinstance(record, Mapping):
            found.append(record)
            continue
        where = f"{path}: record {number}"
        if found:
            yield f"{path}: record 0", found.pop()
        yield where, _mapping(record, where)
    if found:  # one record and nothing else: a list within it, or a file of one line
        yield from _contained(found[0], path)


def _iter_values(text: str, position: int, path: Path, in_list: bool) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    between = re.compile(r"[\s,]*" if in_list else r"\s*")
    while True:
        position = between.match(text, position).end()  # type: ignore[union-attr]
        if in_list and text[position : position + 1] == "]":
            if text[position + 1 :].strip():
                raise ArtifactCorruptError(f"{path}: text after the list of records; correct the file")
            return
        if not in_list and position == len(text):
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise ArtifactCorruptError(f"{path}: not JSON ({error}); correct the file") from None
        yield value


def _contained(record: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    lists = [value for key, value in record.items() if str(key).lower() in _LISTS and isinstance(value, list)]
    if not lists:
        yield f"{path}: record 0", record
        return
    for number, item in enumerate(lists[0]):
        where = f"{path}: record {number}"
        article = _mapping(item, where)
        if not isinstance(article.get("paragraphs"), list):
            yield where, article
            continue
        for paragraph in article["paragraphs"]:
            for question in _list_of(_mapping(paragraph, where), "qas", where):
                yield where, _squad_record(article, paragraph, _mapping(question, where), where)


def _squad_record(
    article: Mapping[str, Any], paragraph: Mapping[str, Any], question: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """One question as the hub's copy has it."""
    answers = [_mapping(answer, where).get("text") for answer in _list_of(question, "answers", where)]
    return {
        "id": question.get("id"),
        "title": article.get("title", ""),
        "context": paragraph.get("context", ""),
        "question": question.get("question"),
        "answers": {"text": answers},
    }


def _table_records(path: Path, kind: str, headed: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    text = _whole_text(path)
    csv.field_size_limit(_LONGEST_LINE)
    first = text[: text.find("\n")] if "\n" in text else text
    table = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if kind == ".tsv" or "\t" in first else ",")
    names: list[str] | None = None
    try:
        for row in table:
            where = f"{path}:{table.line_num}"
            if not row:
                continue
            if names is None:
                names = row if headed else [f"column_{i}" for i in range(1, len(row) + 1)]
                if len(set(names)) < len(names):
                    raise ArtifactCorruptError(
                        f"{where}: expected columns of different names, found {', '.join(names)}; rename one"
                    )
                if headed:
                    continue
            if len(row) != len(names):
                raise ArtifactCorruptError(
                    f"{where}: expected {len(names)} columns ({', '.join(names)}), found {len(row)}; correct the line"
                )
            yield where, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise ArtifactCorruptError(f"{path}:{table.line_num}: not a table ({error}); correct the line") from None


def _parquet_records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS):
                for record in batch.to_pylist():
                    yield f"{path}: row {number}", record
                    number += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ArtifactCorruptError(f"{path}: not a whole Parquet file ({one_line(error)}); get it again") from None


def _whole_text(path: Path) -> str:
    _, blocks = without_mark(iter_blocks(path))
    return b"".join(blocks).decode("utf-8")


def _list_of(record: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """A list of a record, [] if it lacks it."""
    value = record.get(name, [])
    if not isinstance(value, list):
        raise ArtifactCorruptError(f"{where}: {name}: expected a list, found {type(value).__name__}; correct the file")
    return value


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ArtifactCorruptError(
            f"{where}: expected a record {{...}}, found {type(value).__name__}; correct the file"
        )
    return value
