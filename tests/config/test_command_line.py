from __future__ import annotations

import pytest

from retro.config.command_line import CommandParser
from retro.config.errors import ConfigError


def parser() -> CommandParser:
    made = CommandParser(prog="retro x")
    made.add_argument("config")
    made.add_argument("--count", type=int, default=1)
    made.add_argument("overrides", nargs="*", default=[])
    return made


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.yaml", "x=1", "y=2", "--count", "3"],
        ["a.yaml", "--count", "3", "x=1", "y=2"],
        ["--count", "3", "a.yaml", "x=1", "y=2"],
    ],
)
def test_overrides_may_stand_anywhere(arguments: list[str]) -> None:
    found = parser().parse_args(arguments)
    assert (found.config, found.count, found.overrides) == ("a.yaml", 3, ["x=1", "y=2"])


@pytest.mark.parametrize("arguments", [["a.yaml", "--cuont", "3"], ["a.yaml", "--count", "3", "x"], []])
def test_mistakes_are_one_line(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="--help` explains the command"):
        parser().parse_args(arguments)
