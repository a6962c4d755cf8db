"""`retro prep import`: a release out of the file that `retro prep export` wrote."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("archive", help="NAME.tar or NAME.tar.zst")
    parser.add_argument("folder", help="the folder to make; it must not exist yet, or be empty")


def run(arguments: argparse.Namespace) -> int:
    """Unpack, compare every checksum, and print where the release is."""
    from retro.artifacts.archive_import import import_release

    print(f"release: {import_release(arguments.archive, arguments.folder)}")
    return 0
