"""The tiny corpus taken the whole way once per test session."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from retro.cli.main import main
from tests.system.workplace import eval_command, prep_settings, train_command, write_config, write_corpus


@dataclass(frozen=True)
class Place:
    """What the commands made: configuration, release, the two runs. Tests copy what they damage."""

    root: Path
    prep_config: Path
    prep: Path
    release: Path
    runs: Path
    codes: dict[str, int]

    @property
    def gpt(self) -> Path:
        return self.runs / "gpt"

    @property
    def retro(self) -> Path:
        return self.runs / "retro"


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """prep run, 30 steps of GPT and of RETRO, both evaluations; exit codes in `codes`."""
    root = tmp_path_factory.mktemp("system")
    prep, runs = root / "prep", root / "runs"
    config = write_config(root / "prep.yaml", prep_settings(write_corpus(root / "corpus"), prep))
    release = prep / "release.json"
    commands = {
        "prep": ["prep", "run", str(config)],
        "train gpt": train_command("gpt", release, runs),
        "train retro": train_command("retro", release, runs),
        "perplexity gpt": eval_command("perplexity", runs / "gpt", "samples=3"),
        "perplexity retro": eval_command("perplexity", runs / "retro", "samples=3"),
        "docs_qa gpt": eval_command("docs_qa", runs / "gpt", "max_questions=12", "max_answer_tokens=6"),
        "docs_qa retro": eval_command("docs_qa", runs / "retro", "max_questions=12", "max_answer_tokens=6"),
    }
    codes = {name: main(command) for name, command in commands.items()}
    return Place(root, config, prep, release, runs, codes)
