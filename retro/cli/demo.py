"""`retro demo`: the whole way in one command, each step being a command of its own that a user can also give.

Every step resumes or finds its work done, so `retro demo` killed at any point and started again continues.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from retro.cli.main import main as retro_main
from retro.config.command_line import CommandParser
from retro.config.errors import ArtifactMissingError


def commands(configs: Path, scale: str, runs: Path) -> list[tuple[str, list[str]]]:
    """(what it does, arguments of `retro`) of every step. `scale` is the stem of the configuration files."""
    gpt, retro = runs / f"{scale}-gpt", runs / f"{scale}-retro"
    questions = {model: runs / f"{scale}-questions-{model}" for model in ("gpt", "retro")}
    train, evaluate = configs / "train", configs / "eval"

    def training(name: str) -> list[str]:
        return ["train", str(train / f"{scale}_{name}.yaml"), f"run_root={runs}"]

    def evaluation(task: str, run: Path) -> list[str]:
        return ["eval", str(evaluate / f"{scale}_{task}.yaml"), f"checkpoint={run}"]

    return [
        ("Prepare the corpus and its neighbor database", ["prep", "run", str(configs / "prep" / f"{scale}.yaml")]),
        ("Train GPT", training("gpt")),
        ("Train RETRO", training("retro")),
        ("Evaluate GPT", evaluation("perplexity", gpt)),
        ("Evaluate RETRO", evaluation("perplexity", retro)),
        ("Fine-tune GPT on questions", [*training("questions_gpt"), f"init_from={gpt}"]),
        ("Fine-tune RETRO on questions", [*training("questions_retro"), f"init_from={retro}"]),
        ("Ask GPT", [*evaluation("docs_qa", questions["gpt"]), f"output={gpt}"]),
        ("Ask RETRO", [*evaluation("docs_qa", questions["retro"]), f"output={retro}"]),
        ("Compare", ["report", str(gpt), str(retro), "-o", str(runs / scale / "report.html")]),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run all steps; stops at the first that fails and returns its exit code."""
    parser = CommandParser(
        prog="retro demo", description="Corpus -> neighbor database -> GPT and RETRO -> evaluation -> report."
    )
    parser.add_argument("--scale", default="demo", help="demo (default) or smoke (a minute, learns nothing)")
    parser.add_argument("--configs", type=Path, default=None, help="folder of the configurations (default: configs/)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs/)")
    arguments = parser.parse_args(argv)
    configs = arguments.configs or _configs()
    steps = commands(configs, arguments.scale, arguments.runs)
    started = time.monotonic()
    for number, (title, command) in enumerate(steps, 1):
        minutes = (time.monotonic() - started) / 60
        print(f"\n[{number}/{len(steps)}, {minutes:.1f} min] {title}: retro {' '.join(command)}", flush=True)
        code = retro_main(command)
        if code != 0:
            print(f"stopped at step {number}; the same command continues here", file=sys.stderr)
            return code
    minutes = (time.monotonic() - started) / 60
    print(f"\nDone in {minutes:.1f} minutes. Open {arguments.runs / arguments.scale / 'report.html'}")
    return 0


def _configs() -> Path:
    """configs/ of the working folder, or of the checkout that this package is installed from."""
    for folder in (Path("configs"), Path(__file__).resolve().parents[2] / "configs"):
        if (folder / "prep").is_dir():
            return folder
    raise ArtifactMissingError("configs/: not found here; run from the checkout or give --configs FOLDER")
