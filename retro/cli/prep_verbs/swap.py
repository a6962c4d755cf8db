"""`retro prep swap`: the queries of one release with the database of another."""

from __future__ import annotations

import argparse
import time

from retro.cli.prep_verbs.updating import add_output, parse_changes, stage_runner


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--queries", required=True, metavar="RELEASE", help="whose splits and questions are looked up")
    parser.add_argument("--database", required=True, metavar="RELEASE", help="whose database they are looked up in")
    add_output(parser)
    parser.add_argument(
        "changes",
        nargs="*",
        metavar="key=value",
        help="fields of the section neighbors; the others are those of the queries' tables",
    )


def run(arguments: argparse.Namespace) -> int:
    """Find the neighbors and print where the new release is."""
    from data_prep.update.swap import swap_database

    started = time.monotonic()
    changes = parse_changes(arguments.changes)
    path = swap_database(arguments.queries, arguments.database, arguments.out, stage_runner(arguments), changes)
    print(f"release: {path} ({time.monotonic() - started:.0f} s)")
    return 0
