"""`retro prep verify`: is what is there still what it was."""

from __future__ import annotations

import argparse
import sys

from retro.cli.prep_verbs.configured import add_config, read_config
from retro.cli.prep_verbs.wording import size
from retro.config.errors import ArtifactCorruptError, ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "--fraction",
        type=float,
        default=0.01,
        help="share of the shards that are read and made again (default 0.01; at least one per step; 0: none made "
        "again; 1: every byte, and the closing steps too). Steps of up to 1 GiB are always read in full",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of shards")
    add_config(parser, "YAML file, or a release (release.json or its folder): checksums and content of its members")


def run(arguments: argparse.Namespace) -> int:
    """Print a line per step or member and its problems; exit code 3 where there are any."""
    from data_prep.inspection.artifact_check import Sampling
    from data_prep.inspection.verify import is_release, verify, verify_release

    if not 0 <= arguments.fraction <= 1:
        raise ConfigError(f"--fraction: expected 0 to 1, found {arguments.fraction}")
    if arguments.seed < 0:
        raise ConfigError(f"--seed: expected 0 or more, found {arguments.seed}")
    sampling = Sampling(arguments.fraction, arguments.seed)
    if is_release(arguments.config):
        if arguments.overrides:
            raise ConfigError(f"{arguments.config} is a release, which takes no key=value: {arguments.overrides[0]}")
        found = verify_release(arguments.config, sampling, progress=True)
    else:
        found = verify(read_config(arguments), sampling, progress=True)
    problems = 0
    for item in found:
        read = f"{item.files} files read, {size(item.bytes)}"
        made = f", {item.shards} shards made again" if item.shards else ""
        bad = f"{len(item.problems)} problem(s)"
        print(f"{item.name}: {bad if item.problems else 'ok'} ({read}{made})", flush=True)
        for note in item.notes:
            print(f"  note: {note}")
        for problem in item.problems:
            print(f"  {problem}", file=sys.stderr)
        problems += len(item.problems)
    return ArtifactCorruptError.exit_code if problems else 0
