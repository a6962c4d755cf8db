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
    """The main figures, one line per mode or arm."""
    title = results["task"]
    if title == "qa":
        title = f"{results['task_definition']['name']} {results['split']}"
    print(f"{folder}: {title}, {results['model']}, step {results['step']}")
    columns = results["arms"] if results["task"] == "qa" else results["modes"]
    width = max(9, *map(len, columns))
    for name, scores in columns.items():
        parts = [f"{m.replace('_', ' ')} {scores[m]:.4f}" for m in _metrics(results) if scores.get(m) is not None]
        parts.append(f"{scores['tokens']:,} tokens" if "tokens" in scores else f"{scores['n']:,} questions")
        if scores["missing"]:
            parts.append(f"{scores['missing']:,} missing")
        if results.get("too_long", {}).get(name):
            parts.append(f"{results['too_long'][name]:,} of them too long for qa.layout.prompt_chunks")
        print(f"  {name:<{width}} {', '.join(parts)}")


def _metrics(results: dict[str, Any]) -> list[str]:
    if results["task"] == "qa":
        return [results["primary"], *(name for name in results["metrics"] if name != results["primary"])]
    return ["bits_per_byte", "perplexity", "exact_match", "f1"]


if __name__ == "__main__":
    from retro.cli.main import run_command

    raise SystemExit(run_command(main))
