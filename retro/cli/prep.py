"""`retro prep run|status|explain|verify|show CONFIG.yaml [key=value ...]` (also `python -m data_prep`)."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from retro.config.command_line import CommandParser
from retro.config.errors import ArtifactCorruptError
from retro.config.loader import load_config
from retro.config.preparation import PrepConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; errors are RetroError."""
    arguments = _parser().parse_args(argv)
    config = load_config(PrepConfig, arguments.config, arguments.overrides)
    return {"run": _run, "status": _status, "explain": _explain, "verify": _verify, "show": _show}[arguments.verb](
        config, arguments
    )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="retro prep", description="Prepare a chunked neighbor database.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    texts = {
        "run": "carry out every stage that is not finished; killed at any moment it resumes",
        "status": "what is done, resumable, missing; sizes",
        "explain": "which fields made a folder differ from those that are there",
        "verify": "compare checksums, check chunks and neighbors, and make a sample of shards again",
        "show": "print chunks beside their neighbors",
    }
    for verb, text in texts.items():
        sub = verbs.add_parser(verb, help=text, description=text)
        sub.add_argument("config", help="YAML file, e.g. configs/prep/demo.yaml")
        if verb == "verify":
            sub.add_argument(
                "--fraction", type=float, default=0.01, help="share of the shards made again (default 0.01)"
            )
            sub.add_argument("--seed", type=int, default=0)
        if verb == "show":
            sub.add_argument("--split", default="test", help="train, valid or test (default)")
            sub.add_argument("--rows", type=int, nargs="*", default=[], help="chunk numbers; default: random ones")
            sub.add_argument("--count", type=int, default=3, help="number of random chunks (default 3)")
            sub.add_argument("--neighbors", type=int, default=3, help="neighbors per chunk (default 3)")
            sub.add_argument("--seed", type=int, default=0)
        sub.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="override fields of the file")
    return parser


def _run(config: PrepConfig, arguments: argparse.Namespace) -> int:
    from data_prep.pipeline import run

    started = time.monotonic()
    release = run(config)
    print(f"release: {release} ({time.monotonic() - started:.0f} s)")
    return 0


def _status(config: PrepConfig, arguments: argparse.Namespace) -> int:
    from data_prep.inspection import status

    found = status(config)
    width = max(len(item.step) for item in found)
    for item in found:
        size = f"{item.bytes / 1e6:9.1f} MB" if item.state == "done" else " " * 12
        print(f"{item.step:<{width}}  {item.state:<9} {size}  {item.detail}")
    return ArtifactCorruptError.exit_code if any(item.state == "damaged" for item in found) else 0


def _explain(config: PrepConfig, arguments: argparse.Namespace) -> int:
    from data_prep.inspection import explain

    for line in explain(config):
        print(line)
    return 0


def _verify(config: PrepConfig, arguments: argparse.Namespace) -> int:
    from data_prep.inspection import verify

    bad = False
    for step, problems in verify(config, arguments.fraction, arguments.seed):
        print(f"{step}: {'ok' if not problems else f'{len(problems)} problem(s)'}", flush=True)
        for problem in problems:
            print(f"  {problem}", file=sys.stderr)
        bad = bad or bool(problems)
    return ArtifactCorruptError.exit_code if bad else 0


def _show(config: PrepConfig, arguments: argparse.Namespace) -> int:
    from data_prep.show import show

    release = Path(config.root) / "release.json"
    for line in show(release, arguments.split, arguments.rows, arguments.count, arguments.neighbors, arguments.seed):
        print(line)
    return 0


if __name__ == "__main__":
    from retro.cli.main import run_command

    raise SystemExit(run_command(main))
