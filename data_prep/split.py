"""Which split a document belongs to: a pure function of the configuration and of the document alone."""

from __future__ import annotations

import hashlib
from fnmatch import fnmatchcase
from typing import Any

from retro.config.prep import SPLIT_NAMES, SplitConfig

# Other people's names for the same splits.
_KNOWN_NAMES = {
    **{name: name for name in SPLIT_NAMES},
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "db_only": "database_only",
}


class Splitter:
    """Assigns splits. `assign` gives None where the rule needs a value that the record lacks or that is unknown."""

    def __init__(self, config: SplitConfig) -> None:
        self.config = config
        self._names = {**_KNOWN_NAMES, **config.names}
        self._groups = {
            **dict.fromkeys(config.validation_groups, "valid"),
            **dict.fromkeys(config.test_groups, "test"),
            **dict.fromkeys(config.database_only_groups, "database_only"),
        }
        self._patterns = [
            *((pattern, "test") for pattern in config.test_files),
            *((pattern, "valid") for pattern in config.validation_files),
            *((pattern, "database_only") for pattern in config.database_only_files),
        ]

    @property
    def listed_groups(self) -> list[str]:
        """Groups that the configuration names."""
        return sorted(self._groups)

    def unmatched_patterns(self, sources: list[str]) -> list[str]:
        """Patterns of the configuration that match none of the given files."""
        return [pattern for pattern, _ in self._patterns if not any(_matches(source, pattern) for source in sources)]

    def assign(self, document_id: str, group: str, source: str, value: Any) -> str | None:
        """The split of a document; `source` is its file, `value` the content of its split field."""
        rule = self.config.by
        if rule == "group":
            return self._groups.get(group) or self._hashed(group)
        if rule == "field":
            return self._names.get(value) if isinstance(value, str) else None
        if rule == "file":
            return next((split for pattern, split in self._patterns if _matches(source, pattern)), "train")
        return self._hashed(document_id)

    def _hashed(self, name: str) -> str:
        """Split by the position of a seeded hash in [0, 1): test first, then validation, the rest is for training."""
        digest = hashlib.blake2b(f"{self.config.seed}\0{name}".encode(), digest_size=8, person=b"retro-split").digest()
        position = int.from_bytes(digest, "little") / 2**64
        validation, test = self.config.fractions
        if position < test:
            return "test"
        return "valid" if position < test + validation else "train"


def _matches(source: str, pattern: str) -> bool:
    return fnmatchcase(source, pattern) or fnmatchcase(source.rsplit("/", 1)[-1], pattern)
