"""Finding the files of a corpus, and what their readers have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from data_prep.readers.base import Reader
from data_prep.readers.hashing import CorpusFile, FileGuard, FileHasher, corpus_identity
from retro.config.errors import ArtifactError, ArtifactMissingError
from retro.config.prep import PIECE_BYTES, JsonlConfig, ParquetConfig, TextFolderConfig


def find_files(folder: str | Path, patterns: Iterable[str]) -> list[tuple[str, Path]]:
    """(relative posix path, path) of the files that match any pattern, sorted by relative path.

    Hidden files and folders are left out unless a pattern names them with a dot. Raises ArtifactMissingError if the
    folder is not there or a pattern set matches nothing.
    """
    folder = Path(folder)
    patterns = tuple(patterns)
    if not folder.is_dir():
        raise ArtifactMissingError(f"{folder}: corpus folder not found; correct the path in the configuration")
    found: dict[str, Path] = {}
    for pattern in patterns:
        if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise ArtifactError(f"files: pattern {pattern!r} must be relative to the folder {folder} and stay in it")
        hidden = any(part.startswith(".") for part in Path(pattern).parts)
        for path in folder.glob(pattern):
            relative = path.relative_to(folder)
            if path.is_file() and (hidden or not any(part.startswith(".") for part in relative.parts)):
                found[relative.as_posix()] = path
    if not found:
        raise ArtifactMissingError(f"{folder}: no file matches {', '.join(patterns)}; correct folder or files")
    for name in found:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            raise ArtifactError(f"{folder}: file name {name!r} is not valid UTF-8; rename the file") from None
    return sorted(found.items())


class FilesReader(Reader):
    """What the readers of file corpora share: options, the list of files, its hash as identity."""

    cuts_files = False  # whether `pieces` cuts a file at its line marks

    def __init__(
        self,
        config: JsonlConfig | ParquetConfig | TextFolderConfig,
        split_field: str | None = None,
        longest: int = 64 << 20,
        hasher: FileHasher | None = None,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        """split_field: the field of records that names their split; longest: bytes of the longest record that is
        read; piece_bytes: about how much makes a piece."""
        self.config: Any = config
        self.folder = Path(config.folder)
        self.split_field = split_field
        self.longest = longest
        self.hasher = hasher or FileHasher()
        self.piece_bytes = piece_bytes
        self.guard = FileGuard()

    @cached_property
    def files(self) -> list[CorpusFile]:
        """The files of the corpus, hashed, by relative path."""
        spacing = self.piece_bytes if self.cuts_files else 1 << 62
        return self.hasher.describe(find_files(self.folder, self.config.files), spacing)

    def identity(self) -> dict[str, Any]:
        return corpus_identity(self.files)

    def described(self) -> list[CorpusFile]:
        return self.files

    def num_files(self) -> int:
        return len(self.files)

    @contextmanager
    def unchanged(self, item: dict[str, Any]) -> Iterator[Path]:
        """The path of the item's file, which is as it was hashed before and after it is read.

        Raises ArtifactMismatchError if it is not.
        """
        path = self.folder / item["file"]
        self.guard.check(path, item["state"])
        yield path
        self.guard.check(path, item["state"])
