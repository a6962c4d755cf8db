"""`retro prep explain`: why a folder is not the one that another run made."""

from __future__ import annotations

import argparse

from retro.cli.prep_verbs.configured import add_config, read_config
from retro.config.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--folder", metavar="A", help="an artifact folder (path, or name below the root)")
    parser.add_argument("--against", metavar="B", help="another one: down to the fields or the corpus they differ in")
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the lines."""
    from data_prep.inspection.explain import explain, explain_folders

    config = read_config(arguments)
    if (arguments.folder is None) != (arguments.against is None):
        raise ConfigError("--folder A and --against B: expected both, found one; without them the steps are explained")
    if arguments.folder is not None:
        found = explain_folders(arguments.folder, arguments.against, config.root)
    else:
        found = explain(config)
    for line in found:
        print(line)
    return 0
