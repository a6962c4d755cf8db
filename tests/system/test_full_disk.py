"""A disk that is full or read-only, for the whole preparation: one line, nothing wrong, and the next run goes on.

The disk is a small tmpfs, so these tests need the right to mount (root; a container often has it not).
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.workplace import differences, environment, prep_settings, result_files, write_config, write_corpus

STEP = 48 << 10


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    if sys.platform != "linux":
        pytest.skip("tmpfs is of Linux")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def settings_of(corpus: Path, root: Path) -> dict:
    return {**prep_settings(corpus, root), "neighbors": {"candidates": 60, "keep": 12}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("full") / "corpus")


@pytest.fixture(scope="module")
def clean(corpus: Path) -> Path:
    """The same preparation on a disk with room."""
    root = corpus.parent / "prep"
    assert prep(write_config(corpus.parent / "prep.yaml", settings_of(corpus, root)))[0] == 0
    return root


def prep(config: Path) -> tuple[int, list[str]]:
    """Exit code and lines on stderr of `retro prep run`."""
    command = [sys.executable, "-m", "retro.cli.main", "prep", "run", str(config)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr.splitlines()


def fill(disk: Path) -> None:
    """Leave no free byte."""
    with contextlib.suppress(OSError), open(disk / "ballast", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def check_message(code: int, lines: list[str], disk: Path) -> str:
    """One line in the end that says what, where and what to do; no traceback."""
    text = "\n".join(lines)
    assert "Traceback" not in text, text
    errors = [line for line in lines if line.startswith("error: ")]
    assert code in (1, 2, 3) and len(errors) == 1 and lines[-1] == errors[0], text
    return errors[0]


def run_until_it_fits(tmp_path: Path, disk: Path, settings: dict, clean: Path, step: int) -> list[str]:
    """The preparation on a disk that grows by `step` bytes whenever it is full; returns the messages."""
    config = write_config(tmp_path / "prep.yaml", {**settings, "root": str(disk / "prep")})
    size = 64 << 10
    messages = []
    while True:
        code, lines = prep(config)
        if code == 0:
            break
        message = check_message(code, lines, disk)
        assert os.strerror(errno.ENOSPC) in message and str(disk) in message, message
        assert "free the cause and run the command again" in message
        messages.append(message)
        assert len(messages) < 150, "it never fits"
        size += step
        mount("-o", f"remount,size={size}", str(disk))
    assert differences(result_files(clean), result_files(disk / "prep")) == []
    left = [str(path) for path in (disk / "prep").rglob("*") if "tmp-" in path.name or path.name.startswith(".sort-")]
    assert left == []
    return messages


def test_a_full_disk_stops_with_one_line_and_the_run_resumes(corpus, clean, tmp_path, disk):
    settings = settings_of(corpus, disk / "prep")
    messages = run_until_it_fits(tmp_path, disk, settings, clean, 330 << 10)
    stages = {message.split()[1].rstrip(",") for message in messages}
    assert len(stages) >= 4, messages


@pytest.mark.slow
def test_a_full_disk_at_many_places(corpus, clean, tmp_path, disk):
    settings = settings_of(corpus, disk / "prep")
    messages = run_until_it_fits(tmp_path, disk, settings, clean, STEP)
    stages = {message.split()[1].rstrip(",") for message in messages}
    assert len(stages) >= 8, messages


@pytest.mark.slow
def test_a_full_disk_with_vectors_and_two_workers(corpus, tmp_path, disk):
    settings = {
        **settings_of(corpus, disk / "prep"),
        "workers": 2,
        "index": {"kind": "vectors", "vectors": {"factory": "IVF8,Flat", "probes": 4, "recall_queries": 50}},
        "embed": {"kind": "lexical", "lexical": {"dimension": 32, "buckets": 1024}, "shard_chunks": 300},
    }
    clean = tmp_path / "clean"
    assert prep(write_config(tmp_path / "clean.yaml", {**settings, "root": str(clean)}))[0] == 0
    run_until_it_fits(tmp_path, disk, settings, clean, 200 << 10)


def test_a_disk_that_is_full_before_anything_is_written(corpus, tmp_path, disk):
    fill(disk)
    config = write_config(tmp_path / "prep.yaml", settings_of(corpus, disk / "prep"))
    message = check_message(*prep(config), disk)
    assert os.strerror(errno.ENOSPC) in message and str(disk) in message


@pytest.mark.parametrize("begun", [False, True])
def test_a_read_only_output(corpus, clean, tmp_path, disk, begun):
    settings = settings_of(corpus, disk / "prep")
    config = write_config(tmp_path / "prep.yaml", settings)
    if begun:
        mount("-o", "remount,size=800k", str(disk))
        assert prep(config)[0] != 0
    before = result_files(disk)
    assert bool(before) == begun
    mount("-o", "remount,ro,size=64m", str(disk))
    message = check_message(*prep(config), disk)
    assert os.strerror(errno.EROFS) in message and str(disk) in message
    assert result_files(disk) == before
    mount("-o", "remount,rw,size=64m", str(disk))
    assert prep(config)[0] == 0
    assert differences(result_files(clean), result_files(disk / "prep")) == []


def test_a_finished_preparation_on_a_read_only_disk_is_finished(corpus, tmp_path, disk):
    mount("-o", "remount,size=64m", str(disk))
    config = write_config(tmp_path / "prep.yaml", settings_of(corpus, disk / "prep"))
    assert prep(config)[0] == 0
    mount("-o", "remount,ro", str(disk))
    code, lines = prep(config)
    assert code == 0, lines


def test_a_disk_that_is_full_when_only_the_release_is_missing(corpus, tmp_path, disk):
    mount("-o", "remount,size=64m", str(disk))
    config = write_config(tmp_path / "prep.yaml", settings_of(corpus, disk / "prep"))
    assert prep(config)[0] == 0
    kept = (disk / "prep" / "release.json").read_bytes()
    (disk / "prep" / "release.json").unlink()
    fill(disk)
    message = check_message(*prep(config), disk)
    assert "release.json: cannot be written (No space left on device)" in message
    (disk / "ballast").unlink()
    assert prep(config)[0] == 0
    assert (disk / "prep" / "release.json").read_bytes() == kept
