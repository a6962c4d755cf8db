"""Reader of anything the `datasets` library opens, streamed: a local folder, a saved data set, or a name on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from data_prep.readers.base import CORRUPT_FILE, EMPTY_FILE, RawRecord, Reader, Reject, record_fields
from data_prep.readers.files import find_files
from data_prep.readers.hashing import CorpusFile, FileGuard, FileHasher, corpus_identity
from data_prep.readers.hub_data import is_local, open_data_set, resolve_commit
from retro.config.errors import ArtifactError, RetroError
from retro.config.prep import HuggingFaceConfig


class HuggingFaceReader(Reader):
    """One record per row. A piece is one of the data set's own shards; `line` is the row's number in it, from 1."""

    def __init__(
        self, config: HuggingFaceConfig, split_field: str | None = None, hasher: FileHasher | None = None
    ) -> None:
        self.config = config
        self.split_field = split_field
        self.hasher = hasher or FileHasher()
        self.guard = FileGuard()

    @property
    def local(self) -> bool:
        """Whether the data set is a folder on this machine."""
        return is_local(self.config.path)

    @cached_property
    def revision(self) -> str | None:
        """Commit of a data set on the hub; None for a local folder. Asks the hub unless a full commit is configured.

        Raises ArtifactMissingError where the hub does not know the name or cannot be reached.
        """
        if self.local:
            return None
        return resolve_commit(self.config.path, self.config.revision, "huggingface.path")

    def identity(self) -> dict[str, Any]:
        config = self.config
        chosen: dict[str, Any] = {"name": config.name, "split": config.split}
        if self.local:
            return {**corpus_identity(self._local_files), **chosen}
        return {"hub": config.path, "revision": self.revision, **chosen}

    @cached_property
    def _local_files(self) -> list[CorpusFile]:
        """The files of a local folder; few, so that every worker gets the list."""
        return self.hasher.describe(find_files(self.config.path, ("**/*",)), 1 << 62) if self.local else []

    def described(self) -> list[CorpusFile]:
        return self._local_files

    def num_files(self) -> int:
        return max(1, int(self._dataset().num_shards))

    def pieces(self) -> list[dict[str, Any]]:
        """One piece per shard. Raises ArtifactError if a named column is not in the data set."""
        dataset = self._dataset()
        config = self.config
        columns = dataset.column_names
        wanted = (config.text_field, config.id_field, config.title_field, config.group_field, self.split_field)
        for name in wanted:
            if name is not None and columns is not None and name not in columns:
                raise ArtifactError(
                    f"{config.path}: column {name!r} not found; the data set has {', '.join(sorted(columns))}; "
                    "correct the field names in the configuration"
                )
        count = self.num_files()
        return [{"shard": shard, "of": count} for shard in range(count)]

    def read(self, piece: dict[str, Any]) -> Iterator[RawRecord | Reject]:
        config = self.config
        source = f"{config.split}/{piece['shard']:05d}"
        self._check_files()
        dataset = self._dataset()
        if piece["of"] > 1:
            dataset = dataset.shard(num_shards=piece["of"], index=piece["shard"])
        row = 0
        rows = iter(dataset)
        while True:
            try:
                record = next(rows, None)
            except RetroError:
                raise
            except Exception:  # every format behind `datasets` has its own errors; the rest of the shard is lost
                yield Reject(source, row + 1, CORRUPT_FILE)
                return
            if record is None:
                break
            row += 1
            yield RawRecord(source, row, record_fields(record, config, self.split_field, f"{source}:{row}"))
        if row == 0:
            yield Reject(source, 0, EMPTY_FILE)
        self._check_files()

    def _check_files(self) -> None:
        """Raise ArtifactMismatchError if a local file is not what it was when the corpus was hashed."""
        for file in self._local_files:
            self.guard.check(Path(self.config.path) / file.relative, file.state)

    def _dataset(self) -> Any:
        """The streamed split. Raises ArtifactError with the library's own words where it cannot be opened."""
        config = self.config
        return open_data_set(config.path, config.name, config.split, self.revision, "huggingface.path")
