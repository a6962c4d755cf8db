"""The folders of a run's checkpoints: made whole, kept, deleted."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from retro.artifacts.atomic import fsync_directory
from retro.artifacts.checkpoint_folders import BEST, list_checkpoints

#: A link to the checkpoint of the lowest validation loss.


def step_name(step: int) -> str:
    """The name of a checkpoint's folder."""
    return f"step_{step:06d}"


def make_temporary(folder: Path, step: int) -> str:
    """Make the hidden folder that the checkpoint of `step` is written into; its name. One process calls this."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    name = f".{step_name(step)}.tmp-{secrets.token_hex(4)}"
    (folder / name).mkdir()
    return name


def commit(folder: Path, temporary: Path, step: int) -> Path:
    """Give the folder, whose manifest is written, its name; from here on the checkpoint is there."""
    fsync_directory(temporary)
    final = folder / step_name(step)
    if final.exists():  # of the same step: unfinished, or made again after a later one was moved away
        _discard(final)
    os.replace(temporary, final)
    fsync_directory(folder)
    return final


def point_best(folder: Path, step: int | None) -> None:
    """Let `best` be the checkpoint of `step` if it is there; a link to nothing is removed."""
    link = folder / BEST
    if step is not None and (folder / step_name(step)).is_dir():
        if link.is_symlink() and os.readlink(link) == step_name(step):
            return
        if link.is_dir() and not link.is_symlink():  # a copy of the run that followed links
            _discard(link)
        temporary = folder / f".{BEST}.tmp-{secrets.token_hex(4)}"
        os.symlink(step_name(step), temporary)
        os.replace(temporary, link)
        fsync_directory(folder)
    elif link.is_symlink() and not link.exists():
        link.unlink()


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and the best one."""
    link = folder / BEST
    best = Path(os.readlink(link)).name if link.is_symlink() else None  # a copied run may have an absolute one
    for _, old in list_checkpoints(folder)[:-keep]:
        if old.name != best:
            _discard(old)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half written or half deleted. The caller holds the run's lock."""
    for path in [*folder.glob(".step_*.tmp-*"), *folder.glob(f".{BEST}.tmp-*")]:
        _remove(path)


def _discard(path: Path) -> None:
    """Delete a checkpoint so that at no moment a finished one looks damaged."""
    hidden = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    os.replace(path, hidden)
    _remove(hidden)


def _remove(path: Path) -> None:
    """Remove a hidden folder, or a link to a checkpoint that was moved elsewhere. What cannot be removed now (network
    file systems keep files that another process reads) is left to the next save: no reason to end a run."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
