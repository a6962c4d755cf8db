"""Carries out a stage: shards in this process or in a process pool, committed one by one, the manifest last.

Commit protocol of one shard: files are written into a temporary folder, flushed, hashed, renamed into the output
folder, and then the record `shards/<name>.json` (rows, bytes, checksums) is renamed into place. The record is the
commit: after a kill at any moment the next run keeps every shard that has a matching record and makes the rest again.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.stage import Shard, Stage
from retro.artifacts.atomic import fsync_directory, fsync_file, write_json_atomic
from retro.artifacts.manifest import MANIFEST_NAME, Manifest, describe_file, open_manifest, write_manifest
from retro.config.errors import ArtifactError, ArtifactUnfinishedError, RetroError

RECORDS = "shards"
FINISH_RECORD = "_finish"


@dataclasses.dataclass(frozen=True)
class Executor:
    """Where shards run: `workers` = 1 is this process, more is a pool of spawned processes."""

    workers: int = 1


class Progress:
    """Progress of one stage on stderr: shards done, rate and remaining time. Lines, not a bar, when not a terminal."""

    def __init__(self, label: str, total: int, enabled: bool = True) -> None:
        self.label, self.total, self.enabled = label, total, enabled
        self.done = self.skipped = 0
        self.started = time.monotonic()
        self.printed = 0.0

    def advance(self, skipped: bool = False) -> None:
        """Count one finished shard (`skipped` = it was there already)."""
        self.done += 1
        self.skipped += skipped
        self.show()

    def show(self, closing: str | None = None) -> None:
        """Print the state; `closing` ends the display with this text."""
        if not self.enabled:
            return
        now = time.monotonic()
        elapsed = now - self.started
        terminal = sys.stderr.isatty()
        if closing is None and not terminal and now - self.printed < 10.0:
            return
        self.printed = now
        if closing is not None:
            text = f"{self.label}: {closing} ({elapsed:.1f} s)"
        else:
            worked = self.done - self.skipped
            rate = worked / elapsed if elapsed > 0 else 0.0
            left = (self.total - self.done) / rate if rate > 0 else float("nan")
            eta = f", {left:.0f} s left" if left == left else ""
            text = f"{self.label}: {self.done}/{self.total} shards, {rate:.2f}/s{eta}"
        sys.stderr.write(f"\r\x1b[K{text}" if terminal else f"{text}\n")
        if terminal and closing is not None:
            sys.stderr.write("\n")
        sys.stderr.flush()


def run_stage(stage: Stage, root: Path, executor: Executor | None = None, progress: bool = True) -> Path:
    """Make the stage's artifact below `root` and return its folder; return at once if it is finished.

    Killed at any moment and started again it continues after the last committed shard and ends in the same bytes.
    Raises RetroError subclasses for inputs or content that cannot be used; a failing shard is named in the error.
    """
    executor = executor or Executor()
    fingerprint = stage.fingerprint()
    folder = Path(root) / f"{stage.name}-{fingerprint}"
    if _finished(folder, stage, fingerprint):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        if _finished(folder, stage, fingerprint):  # another process made it while we waited
            return folder
        _remove_temporaries(folder)
        (folder / RECORDS).mkdir(exist_ok=True)
        shards = stage.plan()
        _check_names(shards)
        bar = Progress(stage.name, len(shards), progress)
        records = _run_shards(stage, folder, shards, executor, bar)
        closing = _named(
            stage,
            "closing step",
            lambda: _commit(folder, FINISH_RECORD, lambda out: (0, stage.finish(folder, out, records))),
        )
        manifest = Manifest(
            kind=stage.kind,
            stage=stage.name,
            stage_version=stage.version,
            fingerprint=fingerprint,
            config=stage.config,
            inputs={
                name: {
                    "kind": open_manifest(path).kind,
                    "fingerprint": open_manifest(path).fingerprint,
                    "path": os.path.relpath(path.resolve(), folder.resolve()),
                }
                for name, path in sorted(stage.inputs.items())
            },
            shards=records,
            files=closing["files"],
            stats=closing["stats"],
        )
        write_manifest(folder, manifest)
        bar.show(closing=stage.summary(manifest.stats, manifest.rows))
    return folder


def shard_records(folder: Path) -> list[dict[str, Any]]:
    """Records of the shards committed so far in an output folder (finished or not), by name."""
    records = []
    for path in sorted((Path(folder) / RECORDS).glob("*.json")):
        record = _read_record(folder, path.stem)
        if record is not None and path.stem != FINISH_RECORD:
            records.append(record)
    return records


def execute_shard(stage: Stage, folder: Path, shard: Shard) -> dict[str, Any]:
    """Run and commit one shard; the record is returned. Module-level so that worker processes can be sent it."""

    def work(out: Path) -> tuple[int, dict[str, Any]]:
        result = stage.run_shard(shard, out)
        return result.rows, result.stats

    return _commit(folder, shard.name, work)


def _run_shards(
    stage: Stage, folder: Path, shards: list[Shard], executor: Executor, bar: Progress
) -> list[dict[str, Any]]:
    done: dict[str, dict[str, Any]] = {}
    todo: list[Shard] = []
    for shard in shards:
        record = _read_record(folder, shard.name)
        if record is None:
            todo.append(shard)
        else:
            done[shard.name] = record
            bar.advance(skipped=True)
    workers = min(executor.workers, len(todo))
    if workers <= 1:
        for shard in todo:
            done[shard.name] = _named(stage, f"shard {shard.name}", lambda s=shard: execute_shard(stage, folder, s))  # type: ignore[misc]
            bar.advance()
    else:
        _run_pool(stage, folder, todo, workers, done, bar)
    return [done[shard.name] for shard in shards]


def _run_pool(
    stage: Stage,
    folder: Path,
    todo: list[Shard],
    workers: int,
    done: dict[str, dict[str, Any]],
    bar: Progress,
) -> None:
    # spawn, not fork: a forked child hangs for ever in OpenMP libraries (faiss, torch) that the parent has used.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=_start_worker,
        initargs=(os.getpid(), max(1, _cores() // workers)),
    )
    try:
        futures: dict[Future[dict[str, Any]], Shard] = {pool.submit(execute_shard, stage, folder, s): s for s in todo}
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in finished:
                shard = futures[future]
                done[shard.name] = _named(stage, f"shard {shard.name}", future.result)
                bar.advance()
            bar.show()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    pool.shutdown()


def _named(stage: Stage, part: str, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run `call`; give errors the name of the stage and of its part. Content errors keep their type and exit code."""
    try:
        return call()
    except BrokenProcessPool:
        raise RetroError(
            f"{stage.name}: a worker process died (killed, or out of memory) at or near {part}; "
            "run the command again, finished shards are kept; fewer workers need less memory"
        ) from None
    except RetroError as error:
        raise type(error)(f"{stage.name}, {part}: {error}") from None
    except OSError as error:
        raise RetroError(
            f"{stage.name}, {part}: {error.strerror or error}: {error.filename or 'output'}; "
            "nothing half-written counts, finished shards are kept; free the cause and run the command again"
        ) from None


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _start_worker(parent: int, threads: int) -> None:
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)
    _exit_with_parent(parent)


def _exit_with_parent(parent: int) -> None:
    """A worker whose parent was killed ends too: it must not go on writing beside a new run."""
    import threading

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _commit(folder: Path, name: str, work: Callable[[Path], tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    record = _read_record(folder, name)
    if record is not None:
        return record
    out = folder / f".tmp-{name}-{os.getpid()}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    try:
        rows, stats = work(out)
        files = []
        for path in sorted(out.iterdir()):
            fsync_file(path)
            files.append(describe_file(path))
        for entry in files:
            os.replace(out / entry["name"], folder / entry["name"])
        fsync_directory(folder)
        record = {"name": name, "rows": int(rows), "files": files, "stats": stats}
        write_json_atomic(folder / RECORDS / f"{name}.json", record)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return record


def _read_record(folder: Path, name: str) -> dict[str, Any] | None:
    """The shard's record if the shard is committed and its files have the recorded sizes, else None."""
    path = Path(folder) / RECORDS / f"{name}.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        for entry in record["files"]:
            if (Path(folder) / entry["name"]).stat().st_size != entry["bytes"]:
                return None
        return {key: record[key] for key in ("name", "rows", "files", "stats")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _finished(folder: Path, stage: Stage, fingerprint: str) -> bool:
    """Whether `folder` holds the finished artifact. One that is there but damaged is an error, never overwritten."""
    if not (folder / MANIFEST_NAME).exists():
        return False
    try:
        manifest = open_manifest(folder, stage.kind)
    except ArtifactUnfinishedError:
        return False
    if manifest.fingerprint != fingerprint:
        raise ArtifactError(f"{folder}: expected fingerprint {fingerprint}, found {manifest.fingerprint}; move it away")
    return True


def _check_names(shards: list[Shard]) -> None:
    names = [shard.name for shard in shards]
    if len(set(names)) != len(names) or FINISH_RECORD in names:
        raise ValueError(f"shard names must be unique and not {FINISH_RECORD!r}: {names[:5]}...")


def _remove_temporaries(folder: Path) -> None:
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in [*folder.glob(".*.tmp-*"), *(folder / RECORDS).glob(".*.tmp-*")]:
        path.unlink(missing_ok=True)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One writer for an output folder on this machine; a second run waits. Released by the system when we are killed.

    The lock file lives beside the folder and is never an output; it can be deleted while no run holds it.
    """
    path = folder.with_name(f".{folder.name}.lock")
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.stderr.write(f"{folder.name}: another process is making it; waiting\n")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
