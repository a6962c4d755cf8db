"""`retro prep verify`: is what is there still what it was."""

from __future__ import annotations

import argparse
import sys

from retro.cli.prep_verbs.configured import add_config, read_config
from retro.config.errors import ArtifactCorruptError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--fraction", type=float, default=0.01, help="share of the shards made again (default 0.01)")
    parser.add_argument("--seed", type=int, default=0)
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print a line per step and its problems; exit code 3 where there are any."""
    from data_prep.inspection import verify

    bad = False
    for step, problems in verify(read_config(arguments), arguments.fraction, arguments.seed):
        print(f"{step}: {'ok' if not problems else f'{len(problems)} problem(s)'}", flush=True)
        for problem in problems:
            print(f"  {problem}", file=sys.stderr)
        bad = bad or bool(problems)
    return ArtifactCorruptError.exit_code if bad else 0
