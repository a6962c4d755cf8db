"""`retro prep run`: carry out the stages."""

from __future__ import annotations

import argparse
import time

from retro.cli.prep_verbs.configured import add_config, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Make what is not there and print where the release is."""
    from data_prep.pipeline import run as run_pipeline

    started = time.monotonic()
    release = run_pipeline(read_config(arguments))
    print(f"release: {release} ({time.monotonic() - started:.0f} s)")
    return 0
