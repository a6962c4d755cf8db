"""`retro prep show`: chunks beside their neighbors."""

from __future__ import annotations

import argparse
from pathlib import Path

from retro.cli.prep_verbs.configured import add_config, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--split", default="test", help="train, valid or test (default)")
    parser.add_argument("--rows", type=int, nargs="*", default=[], help="chunk numbers; default: random ones")
    parser.add_argument("--count", type=int, default=3, help="number of random chunks (default 3)")
    parser.add_argument("--neighbors", type=int, default=3, help="neighbors per chunk (default 3)")
    parser.add_argument("--seed", type=int, default=0)
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the text."""
    from data_prep.show import show

    release = Path(read_config(arguments).root) / "release.json"
    for line in show(release, arguments.split, arguments.rows, arguments.count, arguments.neighbors, arguments.seed):
        print(line)
    return 0
