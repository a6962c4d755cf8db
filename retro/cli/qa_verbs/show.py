"""`retro qa show FOLDER`: questions beside their passages."""

from __future__ import annotations

import argparse
from pathlib import Path

from retro.config.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("path", metavar="FOLDER", help="what `retro qa prepare` made, or an artifact of questions")
    parser.add_argument("--split", help="train, dev, test, ...; default: the last one")
    parser.add_argument("--ids", nargs="+", default=[], metavar="ID", help="questions by id; default: random ones")
    parser.add_argument("--count", type=int, default=3, help="number of random questions (default 3)")
    parser.add_argument("--passages", type=int, default=3, help="passages of each (default 3)")
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> int:
    """Print the text."""
    for name in ("count", "passages", "seed"):
        if getattr(arguments, name) < 0:
            raise ConfigError(f"--{name}: expected 0 or more, found {getattr(arguments, name)}")
    from retro.data.qa.listing import show_questions

    for line in show_questions(
        Path(arguments.path),
        arguments.split,
        arguments.ids,
        arguments.count,
        arguments.passages,
        arguments.seed,
    ):
        print(line)
    return 0
