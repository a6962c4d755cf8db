"""Run folders that several tests read; a test that changes files makes its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from retro.analysis.comparison import Comparison, compare_runs
from retro.analysis.html_report import render_report
from retro.analysis.runs import Run, load_runs
from tests.analysis.builders import build_pair


@pytest.fixture(scope="session")
def pair_paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A GPT's and a RETRO's run folder, read-only by agreement."""
    return build_pair(tmp_path_factory.mktemp("pair") / "runs")


@pytest.fixture(scope="session")
def pair(pair_paths: tuple[Path, Path]) -> list[Run]:
    """The same, opened."""
    return load_runs(pair_paths)


@pytest.fixture(scope="session")
def comparison(pair: list[Run]) -> Comparison:
    """The same, compared."""
    return compare_runs(pair)


@pytest.fixture(scope="session")
def page(pair: list[Run], comparison: Comparison) -> str:
    """The same, as HTML."""
    return render_report(pair, comparison)
