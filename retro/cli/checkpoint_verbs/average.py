"""`retro checkpoint average checkpoints=[A,B,C] output=FOLDER`, or `run=runs/X last=N`."""

from __future__ import annotations

import argparse

from retro.cli.checkpoint_verbs.output import add_overrides, check_new
from retro.config.checkpoints import AverageConfig
from retro.config.loader import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add_overrides(
        parser, "checkpoints=[A,B,C], or run=runs/X last=N; output=FOLDER; weights=[1,2,3] (default: all alike)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and say what it is made of."""
    config = load_config(AverageConfig, None, arguments.overrides)
    check_new(config.output)
    from retro.train.stored.average import average_checkpoints, newest_checkpoints

    paths = config.checkpoints
    if config.run is not None:
        assert config.last is not None
        paths = tuple(str(path) for path in newest_checkpoints(config.run, config.last))
    made = average_checkpoints(paths, config.output, config.weights, progress=True)
    print(f"{config.output}: {made.parameters:,} parameters, float32, the mean of {len(made.sources)} checkpoints")
    for source in made.sources:
        run_name = f"{source['run']} " if source["run"] else ""
        print(f"  {source['weight']:.4f}  {run_name}{source['checkpoint']}  weights {source['fingerprint']}")
    return 0
