"""`retro eval CONFIG.yaml checkpoint=runs/X [key=value ...]` and `retro eval rescore RUN/eval/TASK`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retro.config.command_line import CommandParser
from retro.config.errors import ConfigError
from retro.config.evaluation import EvalConfig
from retro.config.loader import load_config

_DESCRIPTION = """\
Evaluate a checkpoint. Answers go to RUN/eval/<name>/responses.jsonl and are scored into results.json beside it; killed
and started again it resumes. `retro eval rescore FOLDER...` computes results.json again from the stored answers.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; errors are RetroError."""
    parser = CommandParser(prog="retro eval", description=_DESCRIPTION)
    parser.add_argument("config", help="YAML file, e.g. configs/eval/perplexity.yaml; or the word rescore")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="checkpoint=runs/X, and fields of the file")
    arguments = parser.parse_args(argv)
    from retro.eval.results import write_results

    if arguments.config == "rescore":
        if not arguments.overrides:
            raise ConfigError("rescore: expected folders of evaluations, e.g. runs/demo-retro/eval/perplexity-test")
        for folder in arguments.overrides:
            _show(Path(folder), write_results(folder))
        return 0
    path: str | None = arguments.config
    overrides = list(arguments.overrides)
    if path is not None and "=" in path and not Path(path).exists():
        path, overrides = None, [path, *overrides]
    config = load_config(EvalConfig, path, overrides)
    from retro.eval.runner import evaluate

    folder = evaluate(config)
    _show(folder, write_results(folder))
    return 0


def _show(folder: Path, results: dict[str, Any]) -> None:
    """The main figures, one line per mode."""
    print(f"{folder}: {results['task']}, {results['model']}, step {results['step']}")
    for mode, scores in results["modes"].items():
        parts = []
        for name, unit in (("bits_per_byte", ""), ("perplexity", ""), ("exact_match", ""), ("f1", "")):
            if scores.get(name) is not None:
                parts.append(f"{name.replace('_', ' ')} {scores[name]:.4f}{unit}")
        parts.append(f"{scores['tokens']:,} tokens" if "tokens" in scores else f"{scores['n']:,} questions")
        if scores["missing"]:
            parts.append(f"{scores['missing']:,} missing")
        print(f"  {mode:<9} {', '.join(parts)}")


if __name__ == "__main__":
    from retro.cli.main import run_command

    raise SystemExit(run_command(main))
