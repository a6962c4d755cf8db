"""What the verbs that read a preparation configuration share."""

from __future__ import annotations

import argparse

from retro.config.loader import from_dict, load_mapping
from retro.config.preparation import PrepConfig


def add_config(parser: argparse.ArgumentParser, text: str = "YAML file, e.g. configs/prep/demo.yaml") -> None:
    """The configuration file and its overrides, as the last arguments."""
    parser.add_argument("config", help=text)
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="override fields of the file")


def read_config(arguments: argparse.Namespace) -> PrepConfig:
    """The configuration that the arguments name, completed by that of its base. Raises ConfigError."""
    given = load_mapping(PrepConfig, arguments.config, arguments.overrides)
    if given.get("base") is None:
        return from_dict(PrepConfig, given, arguments.config)
    from data_prep.update.inherit import inherit

    return from_dict(PrepConfig, inherit(given), arguments.config)
