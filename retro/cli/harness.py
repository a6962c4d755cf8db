"""`retro harness --model_args checkpoint=runs/X --tasks T ...`: lm-evaluation-harness on our checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_DESCRIPTION = """\
The command line of lm-evaluation-harness, with --model retro where no model is named. --model_args: checkpoint=runs/X,
release, database, num_neighbors, retrieve (on, off, every:16, adaptive:0.3), precision, max_length, max_gen_toks,
add_bos_token. Its own tasks come from the Hugging Face hub; those named local_* are read from files, of the folder
given by --metadata data=FOLDER. `retro harness ls tasks` lists them. What follows is the harness's own help.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; errors are RetroError."""
    from retro.eval.harness.command_line import run_harness

    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in ("-h", "--help"):
        print(_DESCRIPTION)
    return run_harness(arguments)


if __name__ == "__main__":
    from retro.cli.main import run_command

    raise SystemExit(run_command(main))
