"""`retro prep export`: a release as one file."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("release", help="release.json, or the folder that holds it")
    parser.add_argument("archive", help="the file to write: NAME.tar, or NAME.tar.zst for a compressed one")


def run(arguments: argparse.Namespace) -> int:
    """Write the archive and print what is in it."""
    from retro.artifacts.archive import export_release

    index = export_release(arguments.release, arguments.archive)
    print(
        f"{arguments.archive}: release {index.release}, {len(index.files):,} files, {index.total_bytes / 1e6:,.1f} MB; "
        "`retro prep import` makes a folder of it"
    )
    return 0
