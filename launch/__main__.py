"""`python -m launch CONFIG.yaml [key=value ...] [--dry-run] -- COMMAND ...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from launch.local import run_plan, usable_cores
from launch.plan import plan_launch
from retro.config.command_line import CommandParser
from retro.config.errors import RetroError
from retro.config.launch import LaunchConfig
from retro.config.loader import load_config


def build_parser(program: str) -> argparse.ArgumentParser:
    """The command line before `--`."""
    parser = CommandParser(
        prog=program,
        description="Run a command as several processes of this machine.",
        usage=f"{program} [-h] [--dry-run] CONFIG [key=value ...] -- COMMAND ...",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file, e.g. configs/launch/local.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override fields, e.g. processes=4")
    parser.add_argument("--dry-run", action="store_true", help="print the command line and run nothing")
    return parser


def main(argv: Sequence[str] | None = None, program: str = "python -m launch") -> int:
    """Returns 0 after a dry run; otherwise this process becomes the command. Errors are RetroError."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = build_parser(program).parse_args(arguments[:end])
    config = load_config(LaunchConfig, options.config, options.overrides)
    plan = plan_launch(config, arguments[end + 1 :], python=sys.executable, cores=usable_cores())
    if options.dry_run:
        print(plan.render())
        return 0
    run_plan(plan)


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except RetroError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
