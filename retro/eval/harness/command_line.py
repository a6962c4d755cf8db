"""The harness's own command line with the model "retro"."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from retro.config.errors import ConfigError
from retro.eval.harness import tasks_folder

_COMMANDS = ("run", "ls", "validate")
#: Where the harness judges what it was given: an error out of these is the user's.
_JUDGES = ("_cli", "config")


def harness_arguments(argv: Sequence[str]) -> list[str]:
    """What the harness is given: `run` where no command is named, --model retro where no model is, and the tasks of
    local files besides its own where no other folder is included."""
    arguments = list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        return arguments
    if arguments[0] not in _COMMANDS:
        arguments.insert(0, "run")
    if arguments[1:2] in (["-h"], ["--help"]):
        return arguments
    if arguments[0] == "run" and not _gives(arguments, "--model", "-M", "--config", "-C"):
        arguments += ["--model", "retro"]
    if not _gives(arguments, "--include_path", "--config", "-C"):
        arguments += ["--include_path", str(tasks_folder())]
    return arguments


def _gives(arguments: Sequence[str], *names: str) -> bool:
    return any(argument.split("=", 1)[0] in names for argument in arguments)


def run_harness(argv: Sequence[str]) -> int:
    """`lm_eval` with these arguments; returns the exit code. Raises RetroError, also for arguments that the harness
    refuses."""
    try:
        import lm_eval
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise ConfigError(
            f"lm-evaluation-harness cannot be imported ({error}); pip install 'retro-pretraining[harness]'"
        ) from None
    import retro.eval.harness.model  # noqa: F401 - registers the model

    before = sys.argv
    sys.argv = ["retro harness", *harness_arguments(argv)]
    try:
        cli_evaluate()
    except (ValueError, TypeError, FileNotFoundError, KeyError) as error:
        last = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        package = Path(str(lm_eval.__file__)).parent
        if last.is_relative_to(package) and last.relative_to(package).parts[0] in _JUDGES:
            raise ConfigError(f"lm-evaluation-harness: {' '.join(str(error).split())}") from None
        raise
    finally:
        sys.argv = before
    return 0
