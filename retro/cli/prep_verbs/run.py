"""`retro prep run`: carry out the stages."""

from __future__ import annotations

import argparse
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from retro.cli.prep_verbs.configured import add_config, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "--rank",
        help="this is process R of several that share the root folder (from 0); auto: as Slurm says (configs/launch/)",
        metavar="R|auto",
    )
    parser.add_argument("--world-size", type=int, help="number of those processes; with --rank R", metavar="W")
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Make what is not there and print where the release is."""
    from data_prep.execution.rank import resolve_rank
    from data_prep.pipeline import run as run_pipeline

    rank, world_size = resolve_rank(arguments.rank, arguments.world_size)
    config = read_config(arguments)
    started = time.monotonic()
    with stopped_in_order():
        release = run_pipeline(config, rank=rank, world=world_size)
    print(f"release: {release} ({time.monotonic() - started:.0f} s)")
    return 0


@contextmanager
def stopped_in_order() -> Iterator[None]:
    """SIGTERM (a time limit, a preemption) is treated like Ctrl-C: what we hold is free for others at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
