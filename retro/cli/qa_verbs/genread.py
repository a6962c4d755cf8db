"""`retro qa genread checkpoint=runs/X questions=FOLDER output=FOLDER`: the model writes the passages itself."""

from __future__ import annotations

import argparse

from retro.config.loader import load_config
from retro.config.qa_genread import GenReadConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "overrides",
        nargs="+",
        metavar="key=value",
        help="checkpoint=runs/X, questions=FOLDER, output=FOLDER; splits=[test], max_questions, tokens, prompt, "
        "release, batch, device, precision",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write what is not there, and print where the questions are and how often a document holds an answer."""
    config = load_config(GenReadConfig, None, arguments.overrides)
    from retro.cli.qa_verbs.prepare import recall_lines
    from retro.data.qa.prepared import open_prepared
    from retro.eval.genread import write_passages
    from retro.eval.tasks.genread import NAME

    path, state = write_passages(config)
    prepared = open_prepared(path)
    for line in recall_lines({split: prepared.recall(split) for split in prepared.splits}):
        print(line)
    count = sum(prepared.count(split) for split in prepared.splits)
    print(f"{1000 * state.seconds[NAME] / count:,.0f} ms per document: search_ms of `retro qa adaptive --cost`")
    print(f"questions: {path}")
    return 0
