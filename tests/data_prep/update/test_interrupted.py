"""Adding, removing and swapping end early anywhere, and go on to the same bytes; until then there is no release."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import pipeline
from data_prep.runner import run_stage
from data_prep.stage import Stage
from data_prep.update.remove import remove_documents
from data_prep.update.swap import swap_database
from retro.cli.main import main
from retro.config.errors import RetroError
from tests.data_prep.update.releases import records, release
from tests.data_prep.update.test_add import add_config
from tests.system.workplace import differences, result_files


class Stopped(Exception):
    def __init__(self) -> None:
        super().__init__("Stopped")


def runner(root: Path, stages: int | None = None) -> Callable[[Stage], Path]:
    """Carries stages out, and stops in the middle of the one after `stages`: one shard of it is there."""
    count = 0

    def run(stage: Stage) -> Path:
        nonlocal count
        count += 1
        if stages is not None and count > stages:
            original, made = type(stage).run_shard, 0

            def stop(self: Stage, *arguments: object) -> object:
                nonlocal made
                made += 1
                if made > 1:
                    raise Stopped
                return original(self, *arguments)  # type: ignore[arg-type]

            type(stage).run_shard = stop  # type: ignore[method-assign,assignment]
            try:
                run_stage(stage, root, progress=False)
            finally:
                type(stage).run_shard = original  # type: ignore[method-assign]
            raise Stopped
        return run_stage(stage, root, progress=False)

    return run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release(tmp_path_factory.mktemp("base"), records(40))


def operations(base: Path) -> dict[str, Callable[[Path, Callable[[Stage], Path]], Path]]:
    gone = [records(3)[2]["id"], records(9)[8]["id"]]  # of train and of test
    return {
        "remove": lambda root, run: remove_documents(base, gone, root, run)[0],
        "swap": lambda root, run: swap_database(base, base, root, run, {"keep": 3}),
    }


@pytest.mark.parametrize("name", ["remove", "swap"])
def test_what_stops_goes_on_to_the_same_bytes(base: Path, tmp_path: Path, name: str) -> None:
    operation = operations(base)[name]
    operation(tmp_path / "clean", runner(tmp_path / "clean"))
    expected = result_files(tmp_path / "clean")
    root = tmp_path / "stopped"
    for stages in (0, 1, 3):
        # A worker's exception that says nothing of the content becomes a line after some attempts.
        with pytest.raises((Stopped, RetroError), match="Stopped"):
            operation(root, runner(root, stages))
        assert not (root / "release.json").exists()
    operation(root, runner(root))
    assert differences(expected, result_files(root)) == []


def test_adding_goes_on_to_the_same_bytes(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def add(place: Path) -> int:
        return main(["prep", "add", str(config), f"root={place}"])

    config = add_config(tmp_path / "new", base, records(8, 40))
    assert add(tmp_path / "clean") == 0
    for stages in (4, 9):
        run = runner(tmp_path / "stopped", stages)
        monkeypatch.setattr(pipeline, "run_stage", lambda stage, root, executor, progress, run=run: run(stage))
        with contextlib.suppress(Stopped):
            assert add(tmp_path / "stopped") != 0
        assert not (tmp_path / "stopped" / "release.json").exists()
    monkeypatch.undo()
    assert add(tmp_path / "stopped") == 0
    assert differences(result_files(tmp_path / "clean"), result_files(tmp_path / "stopped")) == []
