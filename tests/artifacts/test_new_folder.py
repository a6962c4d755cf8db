"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from retro.artifacts import atomic
from retro.artifacts.new_folder import new_folder
from retro.config.errors import ConfigError

WRITER = """
import sys
from retro.artifacts.new_folder import new_folder
with new_folder(sys.argv[1]) as folder:
    (folder / "half").write_text("x")
    print("ready", flush=True)
    sys.stdin.readline()
"""


def start_writer(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_whole_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="half way"), new_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("1")
        raise RuntimeError("half way")
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "b" / "a") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "b" / "a").exists()
    assert [path.name for path in (tmp_path / "b" / "a").iterdir()] == ["x"] and hidden(tmp_path / "b") == []
    with pytest.raises(ConfigError, match="exists already"), new_folder(tmp_path / "b" / "a"):
        pass


def test_what_a_killed_writer_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path: Path) -> None:
    killed = start_writer(tmp_path / "out")
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "out").exists()
    (left,) = hidden(tmp_path)
    live = start_writer(tmp_path / "out")
    try:
        (writing,) = hidden(tmp_path)
        assert writing != left
        with new_folder(tmp_path / "out") as folder:
            assert hidden(tmp_path) == sorted([writing, folder.name])
            (folder / "x").write_text("1")
    finally:
        live.communicate("\n")
    assert live.returncode != 0  # the other was first
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"] and hidden(tmp_path) == []


def test_other_names_are_left_alone(tmp_path: Path) -> None:
    for name in (".output.tmp-1-a", ".out.tmp", ".out.tmp-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    (tmp_path / ".out.tmp-1-file").touch()
    (tmp_path / ".out.tmp-1-link").symlink_to(tmp_path / ".output.tmp-1-a")
    before = hidden(tmp_path)
    with new_folder(tmp_path / "out"):
        pass
    assert hidden(tmp_path) == before


def test_without_locks_nothing_is_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "fcntl", None)
    (tmp_path / ".out.tmp-1-a").mkdir()
    (tmp_path / ".out.tmp-1-a" / "x").touch()
    with new_folder(tmp_path / "out"):
        pass
    assert hidden(tmp_path) == [".out.tmp-1-a"]
