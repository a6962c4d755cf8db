"""Which run and mode is which line: one naming, one colour role, one choice of reference for the whole report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from retro.analysis.runs import Run

MODE_WORDS = {"on": "", "off": ", retrieval off", "shuffled": ", shuffled neighbors"}


@dataclasses.dataclass(frozen=True)
class Series:
    """One run in one retrieval mode. `role` picks the colour: gpt, on, off, shuffled, or x1..x4 for further runs."""

    key: str
    run: str
    mode: str
    label: str
    role: str


def reference_run(runs: Sequence[Run]) -> Run:
    """What the others are compared with: the first GPT, or the first run if there is none."""
    return next((run for run in runs if run.model == "gpt"), runs[0])


def main_mode(modes: Sequence[str]) -> str:
    """The mode in which a run is meant to be used: retrieval on, else off, else the first."""
    return next((mode for mode in ("on", "off") if mode in modes), modes[0])


def run_titles(runs: Sequence[Run]) -> dict[str, str]:
    """run name -> title: GPT and RETRO where that is unambiguous, the run's name otherwise."""
    kinds = [run.model for run in runs]
    return {run.name: run.model.upper() if kinds.count(run.model) == 1 else run.name for run in runs}


def describe(runs: Sequence[Run], run: Run, mode: str) -> Series:
    """The series of `run` in `mode` within a report over `runs`."""
    title = run_titles(runs)[run.name]
    plain = run.model == "gpt" and mode == "off"  # the only mode a model without retrieval has
    label = title + ("" if plain else MODE_WORDS.get(mode, f", {mode}"))
    return Series(f"{run.name}/{mode}", run.name, mode, label, role_of(runs, run, mode))


def role_of(runs: Sequence[Run], run: Run, mode: str | None = None) -> str:
    """Colour role of a run (mode None: the run as a whole, in training curves)."""
    reference = reference_run(runs)
    if run is reference and run.model == "gpt":
        return "gpt"
    retro = next((other for other in runs if other.model == "retro"), None)
    if run is retro:
        return mode if mode in ("on", "off", "shuffled") else "on"
    others = [other for other in runs if other is not reference and other is not retro]
    place = next((i for i, other in enumerate(others) if other is run), 0)
    return f"x{place % 4 + 1}"
