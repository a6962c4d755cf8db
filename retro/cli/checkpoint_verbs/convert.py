"""`retro checkpoint convert checkpoint=PATH output=FOLDER files=1|N`."""

from __future__ import annotations

import argparse

from retro.cli.checkpoint_verbs.output import add_overrides, check_new
from retro.cli.prep_verbs.wording import size
from retro.config.checkpoints import ConvertConfig
from retro.config.loader import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add_overrides(parser, "checkpoint=runs/X output=FOLDER files=1 (one file per set of tensors; N: pieces in N files)")


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and say what it holds."""
    config = load_config(ConvertConfig, None, arguments.overrides)
    check_new(config.output)
    from retro.train.stored.convert import convert_checkpoint

    made = convert_checkpoint(config.checkpoint, config.output, config.files, progress=True)
    total = sum(int(entry["bytes"]) for entry in made.files)
    print(f"{config.output}: step {made.stats.get('step')}, {len(made.files)} files, {size(total)}")
    return 0
