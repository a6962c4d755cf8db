"""`retro prep add`: documents behind those of a finished release."""

from __future__ import annotations

import argparse
import time

from retro.cli.prep_verbs.configured import add_config, read_config
from retro.config.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add_config(parser, "YAML file with base: (release.json), root: and ingest: (the new documents)")


def run(arguments: argparse.Namespace) -> int:
    """Make what is not there and print where the new release is."""
    from data_prep.pipeline import run as run_pipeline

    started = time.monotonic()
    config = read_config(arguments)
    if config.base is None:
        raise ConfigError(f"{arguments.config}: base is required: the release.json that documents are added to")
    print(f"release: {run_pipeline(config)} ({time.monotonic() - started:.0f} s)")
    return 0
