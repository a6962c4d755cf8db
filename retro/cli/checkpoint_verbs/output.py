"""What the verbs that write a folder share."""

from __future__ import annotations

import argparse
from pathlib import Path

from retro.config.errors import ConfigError


def add_overrides(parser: argparse.ArgumentParser, text: str) -> None:
    """key=value arguments."""
    parser.add_argument("overrides", nargs="+", metavar="key=value", help=text)


def check_new(output: str) -> None:
    """Raise ConfigError if it exists: before anything is read."""
    if Path(output).exists() or Path(output).is_symlink():
        raise ConfigError(f"output: {output}: exists already, and nothing is overwritten; choose another folder")
