"""`retro launch CONFIG.yaml [key=value ...] [--dry-run] -- retro train ...`: the same as `python -m launch`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from launch.__main__ import main as launch


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 after a dry run; otherwise this process becomes the command. Errors are RetroError."""
    return launch(argv, program="retro launch")


if __name__ == "__main__":
    from retro.cli.main import run_command

    raise SystemExit(run_command(lambda: main(sys.argv[1:])))
