"""`retro prep status`: what is there."""

from __future__ import annotations

import argparse

from retro.cli.prep_verbs.configured import add_config, read_config
from retro.config.errors import ArtifactCorruptError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print a line per step; exit code 3 where one is damaged."""
    from data_prep.inspection import status

    found = status(read_config(arguments))
    width = max(len(item.step) for item in found)
    for item in found:
        size = f"{item.bytes / 1e6:9.1f} MB" if item.state == "done" else " " * 12
        print(f"{item.step:<{width}}  {item.state:<9} {size}  {item.detail}")
    return ArtifactCorruptError.exit_code if any(item.state == "damaged" for item in found) else 0
