"""`retro train CONFIG.yaml [key=value ...]`: train RETRO, or a GPT with the same code.

Several processes: `retro launch configs/launch/local.yaml -- retro train CONFIG.yaml`, or torchrun with
`-m retro.cli.train`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from retro.config.command_line import CommandParser
from retro.config.errors import ConfigError
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
    parser.add_argument(
        "--plan",
        action="store_true",
        help="train nothing: print parameters, memory by part, operations and time on the hardware of section plan "
        "(plan.devices=64 plan.device=H100 plan.mfu=0.4 ...), and refuse what cannot fit",
    )
    parser.add_argument("--json", action="store_true", help="with --plan: as one JSON object")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 128 + the number of the signal that stopped training; errors are RetroError."""
    arguments = build_parser().parse_args(argv)
    config = load_config(TrainConfig, arguments.config, arguments.overrides)
    if arguments.plan:
        return _plan(config, arguments.json)
    if arguments.json:
        raise ConfigError("--json: is read with --plan only; remove it")
    from retro.train.run import train

    stopped = train(config).stopped_by
    return 0 if stopped is None else 128 + stopped


def _plan(config: TrainConfig, as_json: bool) -> int:
    from retro.train.plan.plan import make_plan
    from retro.train.plan.remedies import check_fits
    from retro.train.plan.report import render_plan

    plan = make_plan(config)
    print(json.dumps(plan.to_dict(), indent=2) if as_json else render_plan(plan))
    check_fits(plan)
    return 0


if __name__ == "__main__":
    from retro.cli.main import run_command

    raise SystemExit(run_command(lambda: main(sys.argv[1:])))
