"""Commands of several verbs: `retro prep run`, `retro checkpoint inspect`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence

from retro.config.command_line import CommandParser


def run_verb(prog: str, description: str, verbs: Mapping[str, tuple[str, str]], argv: Sequence[str] | None) -> int:
    """Carry out the verb that the arguments name; returns its exit code. Errors are RetroError.

    verbs: verb -> (module with add_arguments(parser) and run(arguments) -> exit code, one line of help).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = CommandParser(prog=prog, description=description)
    known = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    chosen = arguments[0] if arguments else ""
    for verb, (module, text) in verbs.items():
        sub = known.add_parser(verb, help=text, description=text)
        if verb == chosen:  # the others' modules are not needed to show their line of help
            importlib.import_module(module).add_arguments(sub)
    parsed = parser.parse_args(arguments)
    code: int = importlib.import_module(verbs[parsed.verb][0]).run(parsed)
    return code
