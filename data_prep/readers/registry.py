"""The reader that a configuration names."""

from __future__ import annotations

from data_prep.readers.base import Reader
from data_prep.readers.hashing import FileHasher
from data_prep.readers.huggingface import HuggingFaceReader
from data_prep.readers.jsonl import JsonlReader
from data_prep.readers.parquet import ParquetReader
from data_prep.readers.python_docs.reader import PythonDocsReader
from data_prep.readers.text_folder import TextFolderReader
from retro.config.prep import (
    HuggingFaceConfig,
    IngestConfig,
    JsonlConfig,
    ParquetConfig,
    TextFolderConfig,
)


def build_reader(config: IngestConfig, hasher: FileHasher | None = None) -> Reader:
    """The reader of `config.reader`. It opens nothing yet. `hasher` keeps file hashes between runs."""
    section = config.source
    longest, piece_bytes = config.max_record_bytes, config.piece_bytes
    split_field = config.split.field
    if isinstance(section, JsonlConfig):
        return JsonlReader(section, split_field, longest, hasher, piece_bytes)
    if isinstance(section, ParquetConfig):
        return ParquetReader(section, split_field, longest, hasher, piece_bytes)
    if isinstance(section, TextFolderConfig):
        return TextFolderReader(section, split_field, longest, hasher, piece_bytes)
    if isinstance(section, HuggingFaceConfig):
        return HuggingFaceReader(section, split_field, hasher)
    return PythonDocsReader(section, longest, hasher, piece_bytes)
