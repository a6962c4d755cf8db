"""`retro report runs/A runs/B [-o out.html]`: compare runs on the terminal and in one self-contained HTML file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from retro.config.command_line import CommandParser
from retro.config.errors import ConfigError


def build_parser() -> argparse.ArgumentParser:
    """The command line of `retro report`."""
    parser = CommandParser(
        prog="retro report",
        description="Compare run folders: prints tables, and writes one self-contained HTML file. Reads files only.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folder, e.g. runs/demo-gpt; the GPT is the reference"
    )
    parser.add_argument(
        "-o", "--output", type=Path, help="HTML file (default: report.html beside the first run folder)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number to this JSON file")
    parser.add_argument("--title", help="title of the page (default: the runs' names)")
    parser.add_argument("--draws", type=int, default=2000, help="bootstrap draws, at least 100 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)s)")
    parser.add_argument("--text-only", action="store_true", help="print the tables, write no HTML")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0. Raises RetroError for what the user can mend."""
    arguments = build_parser().parse_args(argv)
    from retro.analysis.comparison import compare_runs
    from retro.analysis.html_report import render_report
    from retro.analysis.runs import load_runs
    from retro.analysis.tables import render_text
    from retro.artifacts.atomic import write_json_atomic, write_text_atomic

    if arguments.text_only and arguments.output is not None:
        raise ConfigError("report: --text-only and --output exclude each other; leave one of them out")
    if arguments.seed < 0:
        raise ConfigError(f"seed: expected 0 or more, found {arguments.seed}")
    runs = load_runs(arguments.runs)
    comparison = compare_runs(runs, arguments.draws, arguments.seed)
    print(render_text(comparison))
    if arguments.json is not None:
        _parent_of(arguments.json)
        write_json_atomic(arguments.json, comparison.to_json())
        print(f"numbers: {arguments.json}")
    if not arguments.text_only:
        output = arguments.output or Path(arguments.runs[0]).resolve().parent / "report.html"
        page = render_report(runs, comparison, arguments.title)
        _parent_of(output)
        write_text_atomic(output, page)
        print(f"report: {_shown(output)}")
    return 0


def _parent_of(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
    if path.is_dir():
        raise ConfigError(f"{path}: expected a file name, found a folder; name the file")


def _shown(path: Path) -> Path:
    """Relative to here where that is shorter."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


if __name__ == "__main__":
    from retro.cli.main import run_command

    raise SystemExit(run_command(lambda: main(sys.argv[1:])))
