"""Stage ingest: a corpus becomes documents with stable ids, splits, and a list of what was rejected and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.corpus_changes import CORPUS_FILES_NAME, corpus_change, write_corpus_files
from data_prep.external_sort import find_repeats, sort_runs
from data_prep.readers.base import (
    BROKEN_UTF8,
    EMPTY_TEXT,
    FILE_REASONS,
    NO_GROUP,
    NO_ID,
    NO_TEXT,
    UNKNOWN_SPLIT,
    WRONG_TYPE,
    RawRecord,
    Reject,
)
from data_prep.readers.files import FilesReader
from data_prep.readers.hashing import FileHasher
from data_prep.readers.registry import build_reader
from data_prep.split import Splitter
from data_prep.stage import Shard, ShardResult, Stage
from retro.config.errors import ArtifactCorruptError, ArtifactError, ConfigError
from retro.config.loader import to_dict
from retro.config.prep import SPLIT_NAMES, IngestConfig
from retro.data.document import DOCUMENTS_KIND, Document, DocumentWriter, document_key, read_documents
from retro.data.npy_file import NpyReader, NpyWriter

_SHOWN = 5
_BLOCK_ROWS = 1 << 14
# Where a corpus lies; what it holds is in its identity (for the hub: name and commit).
_PLACE = ("folder", "path", "revision")


class IngestStage(Stage):
    """Reads the corpus that `config` describes.

    Per shard: `documents-00000-*.jsonl.zst`, `keys-00000.npy` (uint64 document keys, in order) and
    `rejects-00000.jsonl` ({"source", "line", "reason"}; line 0: the whole file). At the end `corpus.jsonl.zst`, the
    files of the corpus ({"file", "bytes", "sha256"}), by which a later run says what has changed.
    Statistics: documents, text_bytes, splits, rejects by reason, encodings.
    Memory: one record (several copies of it); of the corpus only the list of its files.

    After everything was read, ArtifactCorruptError is raised if more than `max_reject_fraction` of the records, or of
    the files, were rejected, ArtifactError if two documents have one id or if there is no document at all, and
    ConfigError if the split names a group or a file that the corpus does not have.
    """

    name = "ingest"
    version = 2
    kind = DOCUMENTS_KIND

    def __init__(self, config: IngestConfig, cache: Path | None = None) -> None:
        """`cache`: a JSON file that keeps hashes of the corpus files between runs (speed only)."""
        self.ingest = config
        self.reader = build_reader(config, FileHasher(cache))
        super().__init__(
            {
                "reader": config.reader,
                # Where the files lie is not what they hold: the same corpus elsewhere gives the same documents.
                "source": {k: v for k, v in to_dict(config.source).items() if k not in _PLACE},
                "corpus": self.reader.identity(),
                "split": config.split.identity(),
                "max_reject_fraction": config.max_reject_fraction,
                "max_record_bytes": config.max_record_bytes,
                **({} if config.reader == "huggingface" else {"piece_bytes": config.piece_bytes}),
            },
            {},
        )

    def plan(self) -> list[Shard]:
        """One shard per piece of the reader. Raises ConfigError if a pattern of the split matches no file."""
        if isinstance(self.reader, FilesReader):
            names = [file.relative for file in self.reader.files]
            for pattern in Splitter(self.ingest.split).unmatched_patterns(names):
                raise ConfigError(f"split: no file of the corpus matches {pattern!r}; correct or remove the pattern")
        return [Shard(f"{i:05d}", piece) for i, piece in enumerate(self.reader.pieces())]

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Read one piece; every record becomes a document or a reject."""
        splitter = Splitter(self.ingest.split)
        listed = set(splitter.listed_groups)
        splits: Counter[str] = Counter()
        rejects: Counter[str] = Counter()
        matched: Counter[str] = Counter()
        encodings: Counter[str] = Counter()
        waiting: list[int] = []
        with (
            NpyWriter(out / f"keys-{shard.name}.npy", np.uint64) as keys,
            DocumentWriter(out, shard.name) as documents,
            open(out / f"rejects-{shard.name}.jsonl", "w", encoding="utf-8", newline="\n") as rejected,
        ):
            for record in self.reader.read(shard.spec):
                result = record if isinstance(record, Reject) else accept_record(record, splitter)
                if isinstance(result, Reject):
                    rejects[result.reason] += 1
                    line = {"source": result.source, "line": result.line, "reason": result.reason}
                    rejected.write(json.dumps(line, ensure_ascii=False) + "\n")
                    continue
                documents.write(result)
                waiting.append(document_key(result.id))
                if len(waiting) == _BLOCK_ROWS:
                    keys.append(np.array(waiting, dtype=np.uint64))
                    waiting = []
                if isinstance(record, RawRecord) and record.encoding:
                    encodings[record.encoding] += 1
                splits[result.split] += 1
                if result.group in listed:
                    matched[result.group] += 1
            keys.append(np.array(waiting, dtype=np.uint64))
        stats = {
            "documents": documents.count,
            "text_bytes": documents.text_bytes,
            "splits": dict(sorted(splits.items())),
            "rejects": dict(sorted(rejects.items())),
            "encodings": dict(sorted(encodings.items())),
            "listed_groups": dict(sorted(matched.items())),
        }
        return ShardResult(documents.count, stats)

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Sum up, and refuse a corpus that is not what the configuration allows."""
        splits: Counter[str] = Counter()
        rejects: Counter[str] = Counter()
        matched: Counter[str] = Counter()
        encodings: Counter[str] = Counter()
        for record in records:
            encodings.update(record["stats"]["encodings"])
            splits.update(record["stats"]["splits"])
            rejects.update(record["stats"]["rejects"])
            matched.update(record["stats"]["listed_groups"])
        documents = sum(record["stats"]["documents"] for record in records)
        self._check_rejects(folder, documents, rejects)
        self._check_ids(folder, out, records)
        for group in Splitter(self.ingest.split).listed_groups:
            if group not in matched:
                raise ConfigError(f"split: group {group!r} is listed, but no document has it; correct or remove it")
        write_corpus_files(out / CORPUS_FILES_NAME, self.reader.described())
        return {
            "documents": documents,
            "text_bytes": sum(record["stats"]["text_bytes"] for record in records),
            "splits": {name: splits[name] for name in SPLIT_NAMES if splits[name]},
            "rejected": sum(rejects.values()),
            "rejects": dict(sorted(rejects.items())),
            "encodings": dict(sorted(encodings.items())),
            "files": self.reader.num_files(),
        }

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """One line for people."""
        splits = ", ".join(f"{count:,} {name}" for name, count in stats["splits"].items())
        line = f"{stats['documents']:,} documents, {stats['text_bytes'] / 1e6:.1f} MB of text ({splits})"
        if set(stats["encodings"]) - {"utf-8"}:
            line += f"; encodings: {_counts(stats['encodings'])}"
        return f"{line}; rejected {_counts(stats['rejects'])}" if stats["rejected"] else line

    def corpus_change(self, root: Path) -> str | None:
        """One line about how the corpus differs from the one that was last ingested below `root`; see there."""
        return corpus_change(self, self.reader.described(), root)

    def _check_rejects(self, folder: Path, documents: int, rejects: Counter[str]) -> None:
        bad_files = sum(count for reason, count in rejects.items() if reason in FILE_REASONS)
        bad_records = sum(rejects.values()) - bad_files
        files = max(1, self.reader.num_files())
        limit = self.ingest.max_reject_fraction
        if documents == 0:
            raise ArtifactError(
                f"the corpus has no usable document; rejected: {_counts(rejects) or 'nothing'}"
                f"{self._listing(folder) if rejects else ''}"
            )
        for bad, total, what in ((bad_records, documents + bad_records, "records"), (bad_files, files, "files")):
            if bad > limit * total:
                raise ArtifactCorruptError(
                    f"{bad:,} of {total:,} {what} were rejected ({100 * bad / total:.2f} %, allowed "
                    f"{100 * limit:g} %): {_counts(rejects)}{self._listing(folder)}; mend the corpus or raise "
                    "max_reject_fraction"
                )

    def _listing(self, folder: Path) -> str:
        return f"; listed in {folder}/rejects-*.jsonl"

    def _check_ids(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> None:
        """Documents are told apart by key everywhere later, so two with one key must not pass."""
        keys = (folder / f"keys-{record['name']}.npy" for record in records)
        every = sort_runs(keys, out / ".keys.npy", np.uint64)
        repeated = count_and_first(find_repeats(every), _SHOWN)
        every.unlink()
        if repeated[0]:
            examples = _places(folder, records, repeated[1])
            shown = "; ".join(f"{name!r} in {' and '.join(places)}" for name, places in sorted(examples.items()))
            raise ArtifactError(
                f"{repeated[0]:,} document ids are used more than once: {shown}; "
                "name a field that identifies the records as id_field, or set it to null to use file and line"
            )


def count_and_first(items: Iterator[int], most: int) -> tuple[int, list[int]]:
    """(how many there are, the first `most` of them)"""
    kept: list[int] = []
    count = 0
    for item in items:
        count += 1
        if len(kept) < most:
            kept.append(item)
    return count, kept


def _places(folder: Path, records: list[dict[str, Any]], keys: list[int]) -> dict[str, list[str]]:
    """The first two places of the documents with each of these keys, by id. Reads the shards that have them only."""
    found: dict[int, list[tuple[str, str]]] = {key: [] for key in keys}
    for record in records:
        wanted = [key for key, places in found.items() if len(places) < 2]
        stored = NpyReader(folder / f"keys-{record['name']}.npy", np.uint64)
        if not any(np.isin(block, np.array(wanted, dtype=np.uint64)).any() for block in stored.blocks(_BLOCK_ROWS)):
            continue
        for path in sorted(folder.glob(f"documents-{record['name']}-*.jsonl.zst")):
            for document in read_documents(path):
                places = found.get(document_key(document.id))
                if places is not None and len(places) < 2:
                    places.append((document.id, document.source))
    examples: dict[str, list[str]] = {}
    for name, source in [place for places in found.values() for place in places]:
        examples.setdefault(name, []).append(source)
    return examples


def accept_record(record: RawRecord, splitter: Splitter) -> Document | Reject:
    """The document of a raw record, or the reason why it is none. The same rules for every reader."""
    fields = record.fields
    reason = _text_problem(fields.get("text")) or _name_problem(fields)
    if reason is not None:
        return Reject(record.source, record.line, reason)
    document_id = str(fields["id"])
    group = "" if fields.get("group") is None else str(fields["group"])
    if splitter.config.by == "group" and not group:
        return Reject(record.source, record.line, NO_GROUP)
    split = splitter.assign(document_id, group, record.source, fields.get("split"))
    if split is None:
        return Reject(record.source, record.line, UNKNOWN_SPLIT)
    title = "" if fields.get("title") is None else str(fields["title"])
    source = f"{record.source}:{record.line}" if record.line else record.source
    return Document(document_id, fields["text"], title, source, group, split)


def _text_problem(text: Any) -> str | None:
    if text is None:
        return NO_TEXT
    if not isinstance(text, str):
        return WRONG_TYPE
    if not text.strip():
        return EMPTY_TEXT
    return None if _encodes(text) else BROKEN_UTF8


def _name_problem(fields: dict[str, Any]) -> str | None:
    """Ids, titles and groups are texts or whole numbers; only the id must be there."""
    if fields.get("id") is None or fields["id"] == "":
        return NO_ID
    for name in ("id", "title", "group"):
        value = fields.get(name)
        if value is None:
            continue
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            return WRONG_TYPE
        if isinstance(value, str) and not _encodes(value):
            return BROKEN_UTF8
    return None


def _encodes(text: str) -> bool:
    # JSON's \ud800 makes a lone surrogate, which has no UTF-8 form.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _counts(rejects: Counter[str] | dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(rejects.items()))
