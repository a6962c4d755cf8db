"""`retro prep remove`: a release without some of its documents."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from retro.cli.prep_verbs.updating import add_output, stage_runner
from retro.config.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("release", help="release.json, or the folder that holds it")
    parser.add_argument("--id", action="append", default=[], metavar="ID", help="id of a document (may be repeated)")
    parser.add_argument("--ids", metavar="FILE", help="UTF-8 text file with one id per line")
    parser.add_argument("--ignore-missing", action="store_true", help="leave ids out that the release does not have")
    parser.add_argument(
        "--purge",
        action="store_true",
        help="when the new release is verified, delete the older folders that still hold the text (they are listed)",
    )
    add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    """Make the new release; say where the text still lies, and delete that where it was asked for."""
    from data_prep.update.remove import remove_documents
    from data_prep.update.residue import check_clean, find_residue, purge
    from retro.artifacts.release import open_release

    started = time.monotonic()
    ids = [*arguments.id, *(_read_ids(Path(arguments.ids)) if arguments.ids else [])]
    old = open_release(arguments.release)
    path, removal = remove_documents(
        old.path, ids, arguments.out, stage_runner(arguments), ignore_missing=arguments.ignore_missing
    )
    new = open_release(path)
    check_clean(new, removal.ids)
    print(f"removed {len(removal.ids):,} documents; release: {path} ({time.monotonic() - started:.0f} s)")
    residue = find_residue(old, removal.ids)
    print(f"{len(residue.folders)} older folders still hold their text, or what was computed from it:")
    for folder in residue.folders:
        print(f"  {folder}")
    if residue.unfinished:
        print("unfinished or damaged folders, which may hold it too:")
        for folder in residue.unfinished:
            print(f"  {folder}")
    print("the corpus itself, evaluations and checkpoints of models trained on the text are not looked at")
    if arguments.purge:
        deleted = purge(residue, old, new)
        print(f"purged: {len(deleted) - 1} folders and {deleted[0]}")
    elif residue.folders:
        print("give --purge to delete these folders")
    return 0


def _read_ids(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--ids: {path} cannot be read as UTF-8 text ({error})") from None
    return [line.rstrip("\r") for line in lines if line.strip()]
