"""Configuration of ingest and deduplicate: where the documents come from, how they are split, what is a duplicate."""

from __future__ import annotations

import codecs
import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from retro.config.checks import require
from retro.config.errors import ConfigError

SPLIT_NAMES = ("train", "valid", "test", "database_only")


# About as much of a corpus as one worker reads at a time: small enough that a corpus of 100 MB is read in parallel.
PIECE_BYTES = 16 << 20


def _check_encodings(names: tuple[str, ...]) -> None:
    require(len(names) > 0, "encodings: expected at least one, such as utf-8")
    for name in names:
        try:
            known = codecs.lookup(name).name
            "".encode(name)  # not one of the codecs from bytes to bytes
        except (LookupError, ValueError):
            raise ConfigError(f"encodings: {name!r} is not known to Python; expected such as utf-8, cp1252") from None
        require(name == known, f"encodings: expected the name {known!r}, found {name!r}")
        require(names.count(name) == 1, f"encodings: {name!r} is listed twice")


@dataclass(frozen=True)
class JsonlConfig:
    """JSON Lines, plain or compressed (.gz, .zst, .xz): one record per line.

    folder: where the files are; files: glob patterns relative to it. id_field None: the id is `relative/path:line`.
    Fields are top-level keys of the records. encodings: tried in this order for each record, the first that fits is
    taken (the manifest counts which); files with a byte order mark of UTF-16 or UTF-32 are read as such.
    """

    folder: str = ""
    files: tuple[str, ...] = ("**/*.jsonl", "**/*.jsonl.gz", "**/*.jsonl.zst", "**/*.jsonl.xz")
    text_field: str = "text"
    id_field: str | None = None
    title_field: str | None = None
    group_field: str | None = None
    encodings: tuple[str, ...] = ("utf-8",)

    def __post_init__(self) -> None:
        _check_encodings(self.encodings)
        for name in self.encodings:
            require(
                "{}\n".encode(name) == b"{}\n",
                f"encodings: {name!r} writes ends of lines in another way, so its lines cannot be found; files of "
                "UTF-16 and UTF-32 are known by their byte order mark, others must be converted",
            )


@dataclass(frozen=True)
class ParquetConfig:
    """Parquet files, read by row group. id_field None: the id is `relative/path:row` (rows count from 1)."""

    folder: str = ""
    files: tuple[str, ...] = ("**/*.parquet",)
    text_field: str = "text"
    id_field: str | None = None
    title_field: str | None = None
    group_field: str | None = None


@dataclass(frozen=True)
class TextFolderConfig:
    """A folder of text files: each file is one document, its id the relative path, its group the first folder.

    Files directly in `folder` are of group ".". encodings: tried in this order for each file, the first that fits is
    taken (the manifest counts which); files with a byte order mark are read by it.
    """

    folder: str = ""
    files: tuple[str, ...] = ("**/*.txt", "**/*.md", "**/*.rst")
    encodings: tuple[str, ...] = ("utf-8",)

    def __post_init__(self) -> None:
        _check_encodings(self.encodings)


@dataclass(frozen=True)
class HuggingFaceConfig:
    """A data set that the `datasets` library opens, streamed.

    path: a local folder (data files, or what `save_to_disk` wrote) or a name on the hub; name: the configuration
    (subset) of it; split: the split to read; revision: branch, tag or commit on the hub (recorded as the commit).
    id_field None: the id is `split/shard:row`, which is stable for a fixed revision.
    """

    path: str = ""
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    text_field: str = "text"
    id_field: str | None = None
    title_field: str | None = None
    group_field: str | None = None


@dataclass(frozen=True)
class PythonDocsConfig:
    """The API documentation of installed packages, read from their sources and never imported.

    packages: import names, each must be installed; standard_library: the running Python's as well.
    min_characters: docstrings shorter than this are not documents. private: also document functions and classes
    whose own name begins with an underscore.
    group_depth: number of leading module components that make a document's group (1: `torch`, 2: `torch.nn`), as one
    number or per top-level package ({torch: 2}; the others have 1).
    """

    packages: tuple[str, ...] = ()
    standard_library: bool = True
    min_characters: int = 80
    private: bool = False
    group_depth: int | dict[str, int] = 1

    def __post_init__(self) -> None:
        depths = self.group_depth.values() if isinstance(self.group_depth, dict) else (self.group_depth,)
        require(all(depth >= 1 for depth in depths), f"group_depth: expected 1 or more, found {self.group_depth!r}")
        require(self.min_characters >= 1, f"min_characters: expected 1 or more, found {self.min_characters}")
        for package in self.packages:
            require(
                package.isidentifier(),
                f"packages: expected top-level import names such as numpy, found {package!r}",
            )


@dataclass(frozen=True)
class SplitConfig:
    """Which documents are for training, validation and test.

    by "document": a seeded hash of the document id; "group": a seeded hash of the document's group, so that no group
    straddles two splits, after the explicit lists *_groups, which win; "field": the record's field `field`, whose
    value is one of train, valid, test, database_only or a key of `names`; "file": the patterns *_files on the
    relative path of the source file (first match in the order test, validation, database_only; all others train).
    The fractions are of documents or of groups. An option that the chosen rule does not read is an error.
    """

    by: Literal["document", "group", "field", "file"] = "document"
    validation_fraction: float | None = None
    test_fraction: float | None = None
    seed: int = 0
    validation_groups: tuple[str, ...] = ()
    test_groups: tuple[str, ...] = ()
    database_only_groups: tuple[str, ...] = ()
    field: str | None = None
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    validation_files: tuple[str, ...] = ()
    test_files: tuple[str, ...] = ()
    database_only_files: tuple[str, ...] = ()

    _READ_BY = {  # noqa: RUF012 - a constant, not a field: it has no annotation
        "document": ("validation_fraction", "test_fraction", "seed"),
        "group": (
            "validation_fraction",
            "test_fraction",
            "seed",
            "validation_groups",
            "test_groups",
            "database_only_groups",
        ),
        "field": ("field", "names"),
        "file": ("validation_files", "test_files", "database_only_files"),
    }
    DEFAULT_FRACTION = 0.01

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            if option.name == "by" or option.name in self._READ_BY[self.by]:
                continue
            default = option.default if option.default is not dataclasses.MISSING else {}
            require(
                getattr(self, option.name) == default,
                f"{option.name} is not read when splitting by {self.by!r}; remove it or set by",
            )
        low, high = self.fractions
        require(
            low >= 0 and high >= 0 and low + high < 1,
            f"validation_fraction and test_fraction: expected 0 or more and a sum below 1, found {low} and {high}",
        )
        listed = [*self.validation_groups, *self.test_groups, *self.database_only_groups]
        for group in listed:
            require(listed.count(group) == 1, f"group {group!r} is listed for two splits; keep one")
        require(self.by != "field" or bool(self.field), "field is required when splitting by 'field'")
        for value, split in self.names.items():
            require(
                split in SPLIT_NAMES,
                f"names.{value}: expected one of {', '.join(SPLIT_NAMES)}, found {split!r}",
            )

    @property
    def fractions(self) -> tuple[float, float]:
        """(validation, test) fractions with the default of 1 % filled in."""
        default = self.DEFAULT_FRACTION
        return (
            default if self.validation_fraction is None else self.validation_fraction,
            default if self.test_fraction is None else self.test_fraction,
        )

    def identity(self) -> dict[str, Any]:
        """The options that the chosen rule reads: what goes in a fingerprint."""
        values = {name: getattr(self, name) for name in self._READ_BY[self.by]}
        if "seed" in values:
            values["validation_fraction"], values["test_fraction"] = self.fractions
        return {"by": self.by, **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}


READERS = ("jsonl", "parquet", "text_folder", "huggingface", "python_docs")


@dataclass(frozen=True)
class IngestConfig:
    """Read a corpus into documents.

    reader: which of the sections below is used; filling in another one is an error. max_reject_fraction: the run
    fails, after everything was read, if more than this share of the records or of the files was rejected.
    max_record_bytes: a longer record is rejected instead of being held in memory (about eight times its size).
    piece_bytes: what one worker reads at a time, about (parquet: uncompressed; python_docs: four times the bytes of
    source code). Never cut are a compressed file, a row group of parquet and a package.
    """

    reader: Literal["jsonl", "parquet", "text_folder", "huggingface", "python_docs"] = "python_docs"
    jsonl: JsonlConfig = field(default_factory=JsonlConfig)
    parquet: ParquetConfig = field(default_factory=ParquetConfig)
    text_folder: TextFolderConfig = field(default_factory=TextFolderConfig)
    huggingface: HuggingFaceConfig = field(default_factory=HuggingFaceConfig)
    python_docs: PythonDocsConfig = field(default_factory=PythonDocsConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    max_reject_fraction: float = 0.01
    max_record_bytes: int = 64 * 1024 * 1024
    piece_bytes: int = PIECE_BYTES

    def __post_init__(self) -> None:
        for name in READERS:
            section = getattr(self, name)
            require(
                name == self.reader or section == type(section)(),
                f"section {name} is filled in, but reader is {self.reader!r}; set reader={name} or remove the section",
            )
        require(
            0 <= self.max_reject_fraction <= 1,
            f"max_reject_fraction: expected 0 to 1, found {self.max_reject_fraction}",
        )
        require(self.max_record_bytes >= 1, f"max_record_bytes: expected 1 or more, found {self.max_record_bytes}")
        require(self.piece_bytes >= 1, f"piece_bytes: expected 1 or more, found {self.piece_bytes}")
        require(
            self.reader != "huggingface" or self.piece_bytes == PIECE_BYTES,
            "piece_bytes is not read by reader 'huggingface', whose data sets have shards of their own; remove it",
        )
        section = self.source
        if isinstance(section, PythonDocsConfig):
            require(
                bool(section.packages) or section.standard_library,
                "python_docs: nothing to read; name packages or set standard_library: true",
            )
        elif isinstance(section, HuggingFaceConfig):
            require(section.path != "", "huggingface.path is required: a local folder or a name on the hub")
        else:
            require(section.folder != "", f"{self.reader}.folder is required: the folder that holds the files")
            require(len(section.files) > 0, f"{self.reader}.files: expected at least one pattern")
        if self.split.by == "group" and not isinstance(section, (PythonDocsConfig, TextFolderConfig)):
            require(
                section.group_field is not None,
                f"split.by=group needs {self.reader}.group_field: the field that holds a record's group",
            )
        require(
            self.split.by != "field" or self.reader in ("jsonl", "parquet", "huggingface"),
            f"split.by=field: the records of reader {self.reader!r} have no fields; split by group, document or file",
        )
        require(
            self.split.by != "file" or self.reader in ("jsonl", "parquet", "text_folder"),
            f"split.by=file: reader {self.reader!r} has no files to match; split by group, document or field",
        )

    @property
    def source(self) -> JsonlConfig | ParquetConfig | TextFolderConfig | HuggingFaceConfig | PythonDocsConfig:
        """The section of the chosen reader."""
        section: JsonlConfig | ParquetConfig | TextFolderConfig | HuggingFaceConfig | PythonDocsConfig
        section = getattr(self, self.reader)
        return section


@dataclass(frozen=True)
class DeduplicateConfig:
    """Drop exact and near duplicates (RETRO, Borgeaud et al. 2022, section 2.1).

    near: also drop near duplicates; shingle_words: words per shingle (the paper's 13-grams); threshold: Jaccard
    similarity of the shingle sets from which two documents are near duplicates; permutations: length of the MinHash
    signature (standard error of the similarity at 0.8: 0.4 / sqrt(permutations)); seed: of the permutations;
    bucket_candidates: of the documents that fall in one bucket of the locality sensitive hashing, the first so many in
    the order of survival are compared with all that follow. It bounds the work where a million documents share their
    boilerplate; buckets that are larger are counted in the manifest.
    """

    near: bool = True
    shingle_words: int = 13
    threshold: float = 0.8
    permutations: int = 128
    seed: int = 1
    bucket_candidates: int = 64

    def __post_init__(self) -> None:
        require(0 < self.threshold <= 1, f"threshold: expected above 0 and at most 1, found {self.threshold}")
        require(self.shingle_words >= 1, f"shingle_words: expected 1 or more, found {self.shingle_words}")
        require(
            16 <= self.permutations <= 4096,
            f"permutations: expected 16 to 4096, found {self.permutations}",
        )
        require(0 <= self.seed < 2**32, f"seed: expected 0 to 2^32 - 1, found {self.seed}")
        require(self.bucket_candidates >= 1, f"bucket_candidates: expected 1 or more, found {self.bucket_candidates}")
