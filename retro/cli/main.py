"""`retro`: one command with sub-commands. Light: `retro --help` imports neither torch nor faiss."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence

from retro.config.errors import RetroError

# name -> (module with main(argv) -> int, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "prep": ("retro.cli.prep", "prepare a chunked neighbor database: run | status | explain | verify | show"),
    "train": ("retro.cli.train", "train RETRO, or GPT with the same code and retrieval absent"),
    "eval": ("retro.cli.eval", "evaluate a checkpoint: perplexity and its controls, question answering"),
    "qa": ("retro.cli.qa", "question answering: tasks, questions with their evidence, when retrieval is worth it"),
    "harness": ("retro.cli.harness", "lm-evaluation-harness on our checkpoints, with retrieval"),
    "generate": (
        "retro.cli.generate",
        "continue a prompt, retrieving at every chunk, and say where evidence came from",
    ),
    "serve": ("retro.cli.serve", "answer completions over HTTP with their evidence; a page to try it"),
    "export": ("retro.cli.export", "write a model as a Hugging Face folder, or whole for retro itself"),
    "checkpoint": ("retro.cli.checkpoint", "look at checkpoints, cut them into other files, average them"),
    "search": ("retro.cli.search", "search the database of a release"),
    "launch": ("retro.cli.launch", "start a command on several processes"),
    "report": ("retro.cli.report", "compare runs: tables on the terminal and one self-contained HTML file"),
    "demo": ("retro.cli.demo", "the whole way: documentation corpus -> GPT and RETRO -> report"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit code (0 done, 2 usage or config, 3 unusable artifact)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Idle OpenMP threads spin for long by default; on a shared machine, or beside a second OpenMP library, that costs
    # more than the work. Must be set before torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if arguments[0] in ("--version", "version"):
        from retro import __version__

        print(f"retro-pretraining {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; commands: {', '.join(COMMANDS)}"
        print(f"error: unknown command {name!r}{hint}", file=sys.stderr)
        return 2
    return run_command(lambda: importlib.import_module(COMMANDS[name][0]).main(arguments[1:]))


def run_command(command: Callable[[], int]) -> int:
    """Call `command`; a user's mistake becomes one line on stderr and its exit code, an interrupt becomes 130.

    Characters that the terminal or file behind stdout has no code for are printed as `?`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        return command()
    except RetroError as error:
        sys.stdout.flush()
        if not error.said_by_another:
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as stop:  # argparse has printed the help
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except KeyboardInterrupt:
        print("interrupted; prep, train and eval go on from there when they are run again", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: point stdout nowhere so that the interpreter exits quietly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _usage() -> str:
    lines = ["usage: retro COMMAND ...", "", "Pretraining language models with retrieval.", "", "commands:"]
    lines += [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    lines += ["", "`retro COMMAND --help` explains one command. README.md shows the whole way."]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
