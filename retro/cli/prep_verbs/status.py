"""`retro prep status`: what is there, and how far the rest is."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from retro.cli.prep_verbs.configured import add_config, read_config
from retro.cli.prep_verbs.wording import duration, size
from retro.config.errors import ArtifactCorruptError

if TYPE_CHECKING:
    from data_prep.inspection.status import Status, StepStatus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the state; exit code 3 where a step is damaged."""
    from data_prep.inspection.status import status, to_json

    found = status(read_config(arguments))
    if arguments.json:
        print(json.dumps(to_json(found), indent=1, sort_keys=True))
    else:
        for line in lines(found):
            print(line)
        if found.too_large:
            sys.stderr.write(
                f"warning: about {size(found.rest.bytes)} are to come, and {size(found.disk.free)} are free at "
                f"{found.root}; make room or choose another root\n"
            )
    return ArtifactCorruptError.exit_code if found.damaged else 0


def lines(found: Status) -> Iterator[str]:
    """The state for people."""
    width = max(len(item.step) for item in found.steps)
    for item in found.steps:
        bytes_text = size(item.bytes) if item.state in ("done", "resumable", "damaged") else ""
        yield f"{item.step:<{width}}  {item.state:<9} {bytes_text:>9}  {item.detail}"
        for line in [*_progress_lines(item), *item.figures]:
            yield f"{'':<{width}}  {'':<9} {'':>9}  {line}"
    free = "" if found.disk.free is None else f", {size(found.disk.free)} free"
    to_come = "" if not found.rest.bytes else f", about {size(found.rest.bytes)} to come"
    yield f"disk: {size(found.disk.used)} used below {found.root}{free}{to_come}"
    for folder in found.unused or []:
        state = "" if folder.finished else ", unfinished"
        yield f"not used by this configuration: {folder.folder.name} ({size(folder.bytes)}{state})"


def _progress_lines(item: StepStatus) -> Iterator[str]:
    progress = item.progress
    if progress is None:
        return
    parts = [f"{progress.rows:,} rows"]
    if progress.shards_per_second:
        parts.append(f"{progress.shards_per_second * 60:,.1f} shards/min")
    if progress.seconds_left is not None:
        parts.append(f"about {duration(progress.seconds_left)} left at that rate")
    if progress.bytes_left:
        parts.append(f"about {size(progress.bytes_left)} to come")
    if progress.idle_seconds is not None:
        parts.append(f"last shard {duration(progress.idle_seconds)} ago")
    yield ", ".join(parts)
    for claim in item.claims:
        yield f"{claim.shard} is being made by {claim.owner}, last sign of life {duration(claim.age_seconds)} ago"
