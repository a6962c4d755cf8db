"""The parser of every command: a wrong command line is a ConfigError, hence one line and exit code 2."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from retro.config.errors import ConfigError


class CommandParser(argparse.ArgumentParser):
    """argparse, except that mistakes are raised as ConfigError instead of printed with the usage, and that key=value
    overrides may stand anywhere, after options too."""

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As argparse does; key=value arguments that it could not place are appended to `overrides`."""
        found, rest = self.parse_known_args(args, namespace)
        misplaced = [item for item in rest if "=" in item and not item.startswith("-")]
        if len(misplaced) < len(rest) or (misplaced and not hasattr(found, "overrides")):
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        if misplaced:
            found.overrides = [*found.overrides, *misplaced]
        return found

    def error(self, message: str) -> NoReturn:
        """Called by argparse for a wrong command line."""
        line = " ".join(message.split())
        raise ConfigError(f"{line}; `{self.prog} --help` explains the command")
