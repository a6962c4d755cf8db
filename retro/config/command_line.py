"""The parser of every command: a wrong command line is a ConfigError, hence one line and exit code 2."""

from __future__ import annotations

import argparse
from typing import NoReturn

from retro.config.errors import ConfigError


class CommandParser(argparse.ArgumentParser):
    """argparse, except that mistakes are raised as ConfigError instead of printed with the usage."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for a wrong command line."""
        line = " ".join(message.split())
        raise ConfigError(f"{line}; `{self.prog} --help` explains the command")
