"""Temporaries of killed writers go, those of live ones stay."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from retro.artifacts import atomic
from retro.artifacts.atomic import atomic_path, remove_dead_temporaries, write_json_atomic, write_text_atomic
from tests.system.workplace import ROOT

WRITER = """
import sys
from retro.artifacts.atomic import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half of it")
    print("writing", flush=True)
    sys.stdin.read()
"""


def start_writer(path: Path) -> subprocess.Popen[str]:
    """A process in the middle of an atomic write of `path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    return process


def temporaries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if ".tmp-" in path.name)


def test_the_temporary_of_a_killed_writer_is_removed_and_that_of_a_live_one_is_not(tmp_path: Path) -> None:
    target = tmp_path / "release.json"
    write_json_atomic(target, {"old": 1})
    dead, live = start_writer(target), start_writer(target)
    try:
        assert len(temporaries(tmp_path)) == 2
        dead.kill()
        dead.wait()
        removed = remove_dead_temporaries(tmp_path, "release.json")
        assert [f"tmp-{dead.pid}" in path.name for path in removed] == [True]
        assert [f"tmp-{live.pid}" in name for name in temporaries(tmp_path)] == [True]
        assert target.read_text() == '{\n "old": 1\n}\n'
        assert live.stdin is not None
        live.stdin.close()
        assert live.wait(timeout=60) == 0
        assert target.read_text() == "half of it" and temporaries(tmp_path) == []
    finally:
        for process in (dead, live):
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def test_only_temporaries_of_the_named_file_are_touched(tmp_path: Path) -> None:
    for name in (".a[1].json.tmp-1-ab", ".b.json.tmp-1-ab", ".a.json.lock", "a.tmp-1"):
        (tmp_path / name).write_text("x")
    assert [p.name for p in remove_dead_temporaries(tmp_path, "a[1].json")] == [".a[1].json.tmp-1-ab"]
    assert [p.name for p in remove_dead_temporaries(tmp_path)] == [".b.json.tmp-1-ab"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.json.lock", "a.tmp-1"]


def test_a_link_and_a_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    (tmp_path / ".r.tmp-1").symlink_to(tmp_path / "precious")
    (tmp_path / ".q.tmp-1").mkdir()
    assert remove_dead_temporaries(tmp_path) == []
    assert (tmp_path / "precious").read_text() == "x" and (tmp_path / ".r.tmp-1").is_symlink()


def test_many_writers_of_one_file_and_a_remover_do_not_disturb_each_other(tmp_path: Path) -> None:
    target, failures = tmp_path / "x.json", []
    ended = threading.Event()

    def write(number: int) -> None:
        try:
            for _ in range(60):
                write_text_atomic(target, f"{number}" * 50)
                assert len(set(target.read_text())) == 1
        except BaseException as error:
            failures.append(error)

    def remove() -> None:
        while not ended.is_set():
            remove_dead_temporaries(tmp_path)

    remover = threading.Thread(target=remove)
    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in (remover, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    ended.set()
    remover.join()
    assert failures == [] and temporaries(tmp_path) == []


def test_without_locks_nothing_is_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "fcntl", None)
    (tmp_path / ".x.tmp-1").write_text("x")
    assert remove_dead_temporaries(tmp_path) == []
    with atomic_path(tmp_path / "x") as temporary:
        temporary.write_text("y")
    assert (tmp_path / "x").read_text() == "y" and temporaries(tmp_path) == [".x.tmp-1"]


def test_the_new_file_has_the_usual_rights(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text_atomic(tmp_path / "x", "y")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
