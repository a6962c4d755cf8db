"""`python -m launch CONFIG.yaml [key=value ...] [--dry-run] -- COMMAND ...`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.local import run_plan, usable_cores
from launch.plan import plan_launch
from launch.prepare import prepare_launch
from launch.submit import check_environment, submit
from retro.config.command_line import CommandParser
from retro.config.errors import ConfigError, RetroError
from retro.config.launch import LaunchConfig
from retro.config.loader import load_config


def build_parser(program: str) -> argparse.ArgumentParser:
    """The command line before `--`."""
    parser = CommandParser(
        prog=program,
        description="Run a command as several processes of this machine, or hand it to Slurm, Kubernetes or SkyPilot.",
        usage=f"{program} [-h] [--dry-run | --write] CONFIG [key=value ...] -- COMMAND ...",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file, e.g. configs/launch/local.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override fields, e.g. processes=4")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="print what would run, write and run nothing")
    instead.add_argument("--write", action="store_true", help="write the launch folder, print what submits it")
    return parser


def main(argv: Sequence[str] | None = None, program: str = "python -m launch") -> int:
    """Returns 0 after a dry run and when jobs are submitted; with type local this process becomes the command.

    Errors are RetroError.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = build_parser(program).parse_args(arguments[:end])
    config = load_config(LaunchConfig, options.config, options.overrides)
    command = arguments[end + 1 :]
    if config.type == "local":
        return _run_here(config, command, options)
    launch = prepare_launch(config, command, python=sys.executable, working_directory=Path.cwd())
    if options.dry_run:
        print(launch.rendered.text(), end="")
        return 0
    if not options.write and config.type != "kubernetes":  # there the values are in the cluster
        check_environment(config.pass_environment, os.environ)
    folder = launch.write()
    print(folder)
    if options.write:
        print(launch.rendered.commands(), end="")
    else:
        submit(launch.rendered, print)
    return 0


def _run_here(config: LaunchConfig, command: Sequence[str], options: argparse.Namespace) -> int:
    if options.write:
        raise ConfigError("--write: type local runs at once and writes nothing; give --dry-run, or leave it out")
    plan = plan_launch(config, command, python=sys.executable, cores=usable_cores())
    if options.dry_run:
        print(plan.render())
        return 0
    check_environment(config.pass_environment, os.environ)
    run_plan(plan)


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except RetroError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
