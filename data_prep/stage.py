"""What a preparation stage is: a plan of shards, the work for one shard, and an optional closing step.

A stage sees only (shard, inputs, output folder); where it runs is the runner's business (data_prep/runner.py). All that
a stage writes is a function of its inputs and of `config`, byte for byte, whatever the number of workers. Fields that
change speed only stay out of `config`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from retro.artifacts.fingerprint import fingerprint
from retro.artifacts.manifest import open_manifest


@dataclasses.dataclass(frozen=True)
class Shard:
    """One unit of work: `name` (five digits by custom) and a JSON-able description of the piece of the input."""

    name: str
    spec: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ShardResult:
    """What a shard reports: `rows` written and figures for the manifest."""

    rows: int
    stats: dict[str, Any] = dataclasses.field(default_factory=dict)


class Stage(ABC):
    """A program that makes one artifact.

    Subclasses set `name`, `version` (raise it when the output of an unchanged config changes) and `kind`, and pass the
    result-changing configuration and the folders of finished input artifacts to `__init__`. Instances are pickled to
    worker processes: open inputs lazily and keep nothing open in fields that travel (use functools.cached_property
    and drop it in `__getstate__`, which this class does).
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    kind: ClassVar[str]

    def __init__(self, config: dict[str, Any], inputs: dict[str, Path]) -> None:
        self.config = config
        self.inputs = {name: Path(path) for name, path in inputs.items()}

    @property
    def gpus(self) -> int:
        """GPUs that one worker uses: it is given its own as far as there are enough. Decides where, never what."""
        return 0

    @abstractmethod
    def plan(self) -> list[Shard]:
        """The shards, in order; a pure function of config and inputs."""

    @abstractmethod
    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Write the shard's files into the empty folder `out`. File names contain the shard's name."""

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Closing step after all shards: may read their files in `folder` and write further files into `out`.

        `records` are the shard records in plan order. Returns the figures for the manifest.
        """
        return {}

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """One line for people about the finished artifact."""
        return f"{rows:,} rows"

    def input_fingerprints(self) -> dict[str, str]:
        """Fingerprint of every input artifact. Raises ArtifactError where one is not usable."""
        return {name: open_manifest(path).fingerprint for name, path in sorted(self.inputs.items())}

    def fingerprint(self) -> str:
        """Identity of the artifact this stage makes."""
        return fingerprint(self.name, self.version, self.config, self.input_fingerprints())

    def folder_name(self) -> str:
        """Name of the output folder below the root: another question has another folder."""
        return f"{self.name}-{self.fingerprint()}"

    def __getstate__(self) -> dict[str, Any]:
        # What cached_property stored (open stores, models) is rebuilt in the worker, never pickled.
        cached = {k for klass in type(self).__mro__ for k, v in vars(klass).items() if _is_cached_property(v)}
        return {k: v for k, v in self.__dict__.items() if k not in cached}


def _is_cached_property(value: Any) -> bool:
    return type(value).__name__ == "cached_property"
