"""`retro qa prepare CONFIG.yaml`: a task's questions with their passages, ready for training and evaluation."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from retro.config.loader import load_config
from retro.config.qa_prepare import QaPrepareConfig

_SHOWN = ("1", "2", "5", "10", "20")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "--rank",
        help="this is process R of several that share the root folder (from 0); auto: as Slurm says",
        metavar="R|auto",
    )
    parser.add_argument("--world-size", type=int, help="number of those processes; with --rank R", metavar="W")
    parser.add_argument("config", help="YAML file, e.g. configs/qa/smoke.yaml")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="override fields of the file")


def run(arguments: argparse.Namespace) -> int:
    """Make what is not there, and print where the questions are and what retrieval found."""
    from data_prep.execution.rank import resolve_rank
    from data_prep.qa_pipeline import QaPipeline
    from retro.cli.prep_verbs.run import stopped_in_order
    from retro.data.qa.prepared import open_prepared

    rank, world_size = resolve_rank(arguments.rank, arguments.world_size)
    config = load_config(QaPrepareConfig, arguments.config, arguments.overrides)
    started = time.monotonic()
    with stopped_in_order():
        path = QaPipeline(config).run(rank=rank, world=world_size)
    prepared = open_prepared(path)
    for line in recall_lines({split: prepared.recall(split) for split in prepared.splits}):
        print(line)
    print(f"questions: {Path(path)} ({time.monotonic() - started:.0f} s)")
    return 0


def recall_lines(recalls: dict[str, dict[str, Any]]) -> list[str]:
    """A table for people: recall@k of evidence and answer, by split and group."""
    rows = []
    for split, figures in recalls.items():
        rows.append((split, figures))
        if len(figures["by_group"]) > 1:
            rows += [(f"  {group}", own) for group, own in figures["by_group"].items()]
    columns = [k for k in _SHOWN if any(k in figures["answer"] for _, figures in rows)]
    width = max((len(name) for name, _ in rows), default=0)
    width = max(width, len("split"))
    lines = []
    for what, text in (
        ("evidence", "a passage of a document that the question names, among the first k"),
        ("answer", "a passage that holds an answer, among the first k"),
    ):
        if not any(figures[what]["n"] for _, figures in rows):
            continue
        lines.append(f"recall of the {what} ({text})")
        lines.append(f"{'split':<{width}}  questions" + "".join(f"{'@' + k:>7}" for k in columns))
        for name, figures in rows:
            cells = "".join(f"{figures[what][k]:7.3f}" if k in figures[what] else f"{'-':>7}" for k in columns)
            lines.append(f"{name:<{width}}  {figures[what]['n']:>9,}{cells}")
    return lines
