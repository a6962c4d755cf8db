"""`retro checkpoint VERB ...`: finished checkpoints looked at, cut into other files, averaged."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from retro.config.command_line import CommandParser

# verb -> (module with add_arguments(parser) and run(arguments) -> exit code, one line of help)
VERBS: dict[str, tuple[str, str]] = {
    "inspect": (
        "retro.cli.checkpoint_verbs.inspect",
        "what a checkpoint holds and whether it is whole; of a run folder: all its checkpoints",
    ),
    "convert": (
        "retro.cli.checkpoint_verbs.convert",
        "the same checkpoint, bit for bit, in another number of files: one, or pieces; a run goes on from either",
    ),
    "average": (
        "retro.cli.checkpoint_verbs.average",
        "the mean of the weights of several checkpoints of one model, as a model folder",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; errors are RetroError."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = CommandParser(prog="retro checkpoint", description="Finished checkpoints of training runs.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    chosen = arguments[0] if arguments else ""
    for verb, (module, text) in VERBS.items():
        sub = verbs.add_parser(verb, help=text, description=text)
        if verb == chosen:  # the others' modules are not needed to show their line of help
            importlib.import_module(module).add_arguments(sub)
    parsed = parser.parse_args(arguments)
    code: int = importlib.import_module(VERBS[parsed.verb][0]).run(parsed)
    return code


if __name__ == "__main__":
    from retro.cli.main import run_command

    raise SystemExit(run_command(main))
