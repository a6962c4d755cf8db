"""`retro train CONFIG.yaml [key=value ...]`: train RETRO, or a GPT with the same code.

Several processes: `retro launch configs/launch/local.yaml -- retro train CONFIG.yaml`, or torchrun with
`-m retro.cli.train`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from retro.config.command_line import CommandParser
from retro.config.loader import load_config
from retro.config.train import TrainConfig


def build_parser() -> argparse.ArgumentParser:
    """The command line of `retro train`."""
    parser = CommandParser(
        prog="retro train",
        description="Train a model. Started again with the same configuration it resumes from its newest checkpoint.",
    )
    parser.add_argument("config", help="YAML file, e.g. configs/train/tiny_retro.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override fields of the file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 128 + the number of the signal that stopped training; errors are RetroError."""
    arguments = build_parser().parse_args(argv)
    config = load_config(TrainConfig, arguments.config, arguments.overrides)
    from retro.train.run import train

    stopped = train(config).stopped_by
    return 0 if stopped is None else 128 + stopped


if __name__ == "__main__":
    from retro.cli.main import run_command

    raise SystemExit(run_command(lambda: main(sys.argv[1:])))
