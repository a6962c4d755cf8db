"""The folder of a run: all that is needed to repeat it (but the release), and what came of it (docs/formats.md).

One process writes a run at a time: a lock on `.lock` says so, and vanishes with the process that holds it.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retro.artifacts.atomic import write_bytes_atomic, write_json_atomic, write_text_atomic
from retro.artifacts.source_code import digest_source, pack_source, read_source, source_root
from retro.config.errors import ConfigError
from retro.config.loader import dump_yaml
from retro.config.train import TrainConfig
from retro.train.checkpointing.folders import remove_leftovers


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, config: TrainConfig) -> None:
        self.path = Path(config.run_root) / config.name
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.sessions = self.path / "sessions.jsonl"
        self.incidents = self.path / "incidents.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.profile = self.path / "profile"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder and hold it. Raises ConfigError if it cannot be made, or another process is training it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = open(self.path / ".lock", "a+", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise ConfigError(
                f"{self.path}: the run folder cannot be made ({error.strerror}); set run_root or name"
            ) from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                holder = handle.read(200).strip() or "unknown"
                raise ConfigError(
                    f"{self.path}: another process is training this run ({holder}); wait for it or end it, or give "
                    "another name="
                ) from None
            except OSError as error:
                raise ConfigError(
                    f"{self.path}: files cannot be locked there ({error.strerror}), so nobody knows whether another "
                    "process is training this run; set run_root to a file system with locks"
                ) from None
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            handle.flush()
            self._remove_leftovers()
            yield

    def _remove_leftovers(self) -> None:
        """What killed processes left half written; nobody else writes here now."""
        for path in self.path.glob(".*.tmp-*"):
            path.unlink(missing_ok=True)
        remove_leftovers(self.checkpoints)

    def write_config(self, config: TrainConfig) -> None:
        """The configuration as it was resolved; paths are absolute, so that it works in any working directory."""
        changes: dict[str, Any] = {name: os.path.abspath(getattr(config, name)) for name in ("release", "run_root")}
        if config.init_from is not None:
            changes["init_from"] = os.path.abspath(config.init_from)
        if config.qa is not None:
            questions = os.path.abspath(config.qa.questions)
            changes["qa"] = dataclasses.replace(config.qa, questions=questions)
        if config.retrofit is not None:
            base = os.path.abspath(config.retrofit.base)
            changes["retrofit"] = dataclasses.replace(config.retrofit, base=base)
        write_text_atomic(self.path / "config.yaml", dump_yaml(dataclasses.replace(config, **changes)))

    def write_code(self) -> str:
        """The source that runs now, once for each content; its path in the run folder."""
        files = read_source(source_root())
        name = f"code/{digest_source(files)}.zip"
        if not (self.path / name).is_file():
            (self.path / "code").mkdir(exist_ok=True)
            write_bytes_atomic(self.path / name, pack_source(files))
        return name

    def write_release(self, release: Path) -> None:
        """A copy of release.json that works from this folder: members are found relative to the file."""
        content = json.loads(release.read_text(encoding="utf-8"))
        write_json_atomic(self.path / "release.json", _moved(content, release.resolve().parent, self.path.resolve()))

    def write_environment(self, environment: dict[str, Any], packages: list[str]) -> None:
        """Versions and hardware of the current session; packages as pip takes them, `name==version`."""
        write_json_atomic(self.path / "environment.json", environment)
        write_text_atomic(self.path / "packages.txt", "".join(f"{line}\n" for line in packages))

    @contextmanager
    def log(self) -> Iterator[logging.Logger]:
        """A logger to stderr and, with the time, to log.txt."""
        logger = logging.Logger(f"retro.train.{self.path.name}", logging.INFO)
        console = _ConsoleHandler()
        file = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        for handler in (console, file):
            logger.addHandler(handler)
        try:
            yield logger
        finally:
            file.close()


class _ConsoleHandler(logging.Handler):
    """Writes lines to stderr, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        if sys.stderr.isatty():
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)


def silent_log() -> logging.Logger:
    """For processes that are not the main one."""
    logger = logging.Logger("retro.train.silent", logging.CRITICAL + 1)
    logger.addHandler(logging.NullHandler())
    return logger


def _moved(value: Any, old: Path, new: Path) -> Any:
    """The members of a release, their paths relative to `new` instead of `old`."""
    if not isinstance(value, dict):
        return value
    out = {key: _moved(item, old, new) for key, item in value.items()}
    if "path" in out and "fingerprint" in out:
        out["path"] = os.path.relpath(os.path.normpath(old / out["path"]), new)
    return out
