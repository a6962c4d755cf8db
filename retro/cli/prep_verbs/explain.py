"""`retro prep explain`: why a folder is not the one that another run made."""

from __future__ import annotations

import argparse

from retro.cli.prep_verbs.configured import add_config, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the lines."""
    from data_prep.inspection import explain

    for line in explain(read_config(arguments)):
        print(line)
    return 0
